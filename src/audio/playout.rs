//! What the agent has said, is saying and is about to say, as audio.
//!
//! [`Playout`] is pure: synthesis pushes samples in, the driver pulls frames out and tells how much
//! of them is still queued at the track. What has been handed out less what is queued has been
//! heard. After every call, drain [`Playout::poll_event`] to `None`.
//!
//! Speeches sound one after the other in the order of `play`. A speech that is still being
//! synthesised holds up those behind it; a paused one does too, but not a speech that is played
//! after the pause.

use std::{collections::VecDeque, time::Duration};

use crate::{session::input::PlayoutEvent, tts::SpeechId};

/// Speeches held at once; pushing to one more is an overflow.
const MAX_SPEECHES: usize = 16;
/// Ended speeches that are remembered, so that late audio of theirs is ignored.
const MAX_RETIRED: usize = 64;
/// Events kept for a driver that does not poll; then the oldest go.
const MAX_EVENTS: usize = 64;
/// Heard audio between two `Position` events.
const POSITION_MS: u64 = 100;
/// Length of the fade where speech breaks off or goes on.
const FADE_MS: usize = 5;

/// What [`Playout::next_frame`] has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    pub id: SpeechId,
    /// Samples of the speech in the frame; zeros follow.
    pub samples: usize,
}

/// The agent's playout queue: mono s16 at one rate.
#[derive(Debug)]
pub struct Playout {
    rate: u32,
    /// The most samples of one speech.
    limit: usize,
    /// In the order in which they sound; those not yet played are anywhere.
    speeches: Vec<Speech>,
    retired: VecDeque<SpeechId>,
    /// The faded end of what was broken off, not yet handed out.
    tail: Option<(SpeechId, Vec<i16>)>,
    /// Samples at the track that are not heard yet.
    queued: usize,
    events: VecDeque<(SpeechId, PlayoutEvent)>,
    overflow: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    /// Collects audio until `play`.
    Held,
    Flowing,
    Paused,
}

#[derive(Debug)]
struct Speech {
    id: SpeechId,
    flow: Flow,
    /// All of it, so that it can go on from an earlier position.
    samples: Vec<i16>,
    /// Nothing will be pushed any more.
    finished: bool,
    /// Where it began to flow last.
    from: usize,
    /// Samples up to here have been handed out.
    handed: usize,
    /// Samples up to here have been heard.
    heard: usize,
    started: bool,
    fade_in: bool,
    /// The position told last, in ms.
    told_ms: u64,
}

impl Speech {
    fn new(id: SpeechId, flow: Flow) -> Self {
        Self {
            id,
            flow,
            samples: Vec::new(),
            finished: false,
            from: 0,
            handed: 0,
            heard: 0,
            started: false,
            fade_in: false,
            told_ms: 0,
        }
    }

    fn is_handed_out(&self) -> bool {
        self.finished && self.handed == self.samples.len()
    }
}

impl Playout {
    /// For samples at `rate` (Hz); of each speech at most `limit` is kept.
    pub fn new(rate: u32, limit: Duration) -> Self {
        let limit = (limit.as_millis() as u64).saturating_mul(u64::from(rate)) / 1000;
        Self {
            rate: rate.max(1),
            limit: usize::try_from(limit).unwrap_or(usize::MAX),
            speeches: Vec::with_capacity(MAX_SPEECHES),
            retired: VecDeque::with_capacity(MAX_RETIRED),
            tail: None,
            queued: 0,
            events: VecDeque::with_capacity(MAX_EVENTS),
            overflow: 0,
        }
    }

    /// In Hz.
    pub fn rate(&self) -> u32 {
        self.rate
    }

    /// Samples dropped because a speech was longer than the limit, or too many were held.
    pub fn overflow(&self) -> u64 {
        self.overflow
    }

    /// Adds synthesised audio. Audio of a cancelled or drained speech is ignored.
    pub fn push(&mut self, id: SpeechId, samples: &[i16]) {
        let (limit, second) = (self.limit, self.rate as usize);
        let kept = self.speech(id, Flow::Held).map_or(0, |speech| {
            let room = if speech.finished { 0 } else { limit - speech.samples.len() };
            let kept = room.min(samples.len());
            // By the second, not by doubling: of a long answer half would be air.
            if speech.samples.capacity() - speech.samples.len() < kept {
                speech.samples.reserve_exact(kept.max(second));
            }
            speech.samples.extend_from_slice(&samples[..kept]);
            kept
        });
        if !self.retired.contains(&id) {
            self.overflow += (samples.len() - kept) as u64;
        }
    }

    /// No more audio will come.
    pub fn finish(&mut self, id: SpeechId) {
        if let Some(speech) = self.speech(id, Flow::Held) {
            speech.finished = true;
        }
        self.settle();
    }

    /// Lets the speech flow as its audio arrives.
    pub fn play(&mut self, id: SpeechId) {
        match self.speech(id, Flow::Held) {
            Some(speech) if speech.flow == Flow::Held => speech.flow = Flow::Flowing,
            _ => return,
        }
        // Behind all that flow, before the first that is paused.
        if let Some(at) = self.index(id) {
            let speech = self.speeches.remove(at);
            let behind =
                self.speeches.iter().rposition(|s| s.flow == Flow::Flowing).map_or(0, |n| n + 1);
            let paused =
                self.speeches.iter().position(|s| s.flow == Flow::Paused).unwrap_or(behind);
            self.speeches.insert(paused.min(behind), speech);
        }
        self.settle();
    }

    /// Stops handing the speech out: the driver has emptied the track's queue, of which
    /// `unheard_ms` had not been heard. Tells the position; what was not heard is kept.
    ///
    /// Where that breaks off a sound, the next frame is a short fade of it. Nothing flows on until
    /// `resume`, `cancel`, or the `play` of another speech.
    pub fn clear(&mut self, id: SpeechId, unheard_ms: u32) {
        self.set_queued_ms(unheard_ms);
        self.queued = 0;
        let fade = self.samples_in(FADE_MS);
        let rate = self.rate;
        let Some(at) = self.index(id) else {
            if !self.retired.contains(&id) {
                self.tell(id, PlayoutEvent::Position { ms: 0 });
            }
            return;
        };
        let (before, from_here) = self.speeches.split_at_mut(at);
        // What was unheard of speeches before this one is lost; those behind have yet to sound.
        for speech in before {
            speech.heard = speech.handed;
        }
        let mut rewound = from_here.iter_mut();
        let Some(speech) = rewound.next() else { return };
        if speech.flow == Flow::Flowing && speech.handed > speech.heard {
            let end = speech.samples.len().min(speech.heard + fade);
            let mut tail = speech.samples[speech.heard..end].to_vec();
            fade_out(&mut tail);
            self.tail = Some((id, tail));
        }
        speech.flow = Flow::Paused;
        rewind(speech, speech.heard);
        for later in rewound.filter(|speech| speech.flow == Flow::Flowing) {
            rewind(later, later.heard);
        }
        if let Some(speech) = self.speeches.get_mut(at) {
            speech.told_ms = speech.heard as u64 * 1000 / u64::from(rate);
            let position = PlayoutEvent::Position { ms: speech.told_ms };
            self.tell(id, position);
        }
        self.settle();
    }

    /// Goes on with a cleared speech from this position, faded in.
    pub fn resume(&mut self, id: SpeechId, from_ms: u64) {
        let from = usize::try_from(from_ms.saturating_mul(u64::from(self.rate)) / 1000)
            .unwrap_or(usize::MAX);
        if let Some(at) = self.index(id)
            && let speech = &mut self.speeches[at]
            && speech.flow == Flow::Paused
        {
            rewind(speech, from.min(speech.samples.len()));
            speech.flow = Flow::Flowing;
            speech.fade_in = speech.from > 0;
            self.settle();
        }
    }

    /// Forgets the speech; what of it is at the track stays there.
    pub fn cancel(&mut self, id: SpeechId) {
        if let Some(at) = self.index(id) {
            self.speeches.remove(at);
        }
        self.retire(id);
        self.settle();
    }

    /// Writes the next frame (10 ms, say) into `out`; the end of a speech is filled up with zeros.
    /// `None` where nothing is to be heard now: `out` is left alone.
    ///
    /// The frame counts as queued at the track until [`Self::set_queued_ms`] says otherwise.
    pub fn next_frame(&mut self, out: &mut [i16]) -> Option<Frame> {
        if out.is_empty() {
            return None;
        }
        let frame = match self.take_tail(out) {
            Some(frame) => frame,
            None => self.take_speech(out)?,
        };
        out[frame.samples..].fill(0);
        self.queued += out.len();
        Some(frame)
    }

    /// How much audio the track holds that has not been heard. Tell it after each frame, and until
    /// it is 0 when there are none.
    pub fn set_queued_ms(&mut self, queued_ms: u32) {
        self.queued = self.samples_in(queued_ms as usize);
        let mut unheard = self.queued;
        // The newest audio is at the end of the track's queue.
        for speech in self.speeches.iter_mut().rev().filter(|s| s.flow == Flow::Flowing) {
            let of_this = unheard.min(speech.handed - speech.from);
            unheard -= of_this;
            speech.heard = speech.heard.max(speech.handed - of_this);
        }
        self.tell_positions();
        self.settle();
    }

    /// The next thing to tell the session.
    pub fn poll_event(&mut self) -> Option<(SpeechId, PlayoutEvent)> {
        self.events.pop_front()
    }

    /// Whether anything is at the track or could be handed out now.
    pub fn is_sounding(&self) -> bool {
        self.queued > 0 || self.tail.is_some() || self.next_speech().is_some()
    }

    fn take_tail(&mut self, out: &mut [i16]) -> Option<Frame> {
        let (id, tail) = self.tail.take()?;
        let samples = tail.len().min(out.len());
        out[..samples].copy_from_slice(&tail[..samples]);
        Some(Frame { id, samples })
    }

    fn take_speech(&mut self, out: &mut [i16]) -> Option<Frame> {
        let fade = self.samples_in(FADE_MS);
        let at = self.next_speech()?;
        let speech = &mut self.speeches[at];
        let ready = &speech.samples[speech.handed..];
        // A gap in the middle of a word is better than two half frames around it.
        if ready.len() < out.len() && !speech.finished {
            return None;
        }
        let samples = ready.len().min(out.len());
        out[..samples].copy_from_slice(&ready[..samples]);
        speech.handed += samples;
        if std::mem::take(&mut speech.fade_in) {
            fade_in(&mut out[..samples], fade);
        }
        let id = speech.id;
        if !std::mem::replace(&mut speech.started, true) {
            self.tell(id, PlayoutEvent::Started);
        }
        Some(Frame { id, samples })
    }

    /// The speech whose turn it is, if it flows and is not fully handed out.
    fn next_speech(&self) -> Option<usize> {
        let at = self.speeches.iter().position(|s| {
            s.flow == Flow::Paused || s.flow == Flow::Flowing && !s.is_handed_out()
        })?;
        let speech = &self.speeches[at];
        (speech.flow == Flow::Flowing && speech.handed < speech.samples.len()).then_some(at)
    }

    fn tell_positions(&mut self) {
        let rate = u64::from(self.rate);
        for at in 0..self.speeches.len() {
            let speech = &mut self.speeches[at];
            let ms = speech.heard as u64 * 1000 / rate;
            if speech.flow == Flow::Flowing && ms >= speech.told_ms + POSITION_MS {
                speech.told_ms = ms;
                let id = speech.id;
                self.tell(id, PlayoutEvent::Position { ms });
            }
        }
    }

    /// Retires what has been heard to its end, in order.
    fn settle(&mut self) {
        while let Some(at) = self.speeches.iter().position(|s| s.flow != Flow::Held) {
            let speech = &self.speeches[at];
            let (id, heard) = (speech.id, speech.heard);
            let drained = speech.flow == Flow::Flowing
                && speech.is_handed_out()
                && heard == speech.samples.len();
            if !drained {
                return;
            }
            self.speeches.remove(at);
            self.retire(id);
            let ms = heard as u64 * 1000 / u64::from(self.rate);
            self.tell(id, PlayoutEvent::Drained { ms });
        }
    }

    fn tell(&mut self, id: SpeechId, event: PlayoutEvent) {
        if let (Some((last, PlayoutEvent::Position { ms: old })), PlayoutEvent::Position { ms }) =
            (self.events.back_mut(), event)
            && *last == id
        {
            *old = ms;
            return;
        }
        if self.events.len() == MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back((id, event));
    }

    fn retire(&mut self, id: SpeechId) {
        if self.retired.contains(&id) {
            return;
        }
        if self.retired.len() == MAX_RETIRED {
            self.retired.pop_front();
        }
        self.retired.push_back(id);
    }

    fn index(&self, id: SpeechId) -> Option<usize> {
        self.speeches.iter().position(|speech| speech.id == id)
    }

    /// The speech, made if it is new; `None` where it has ended or there are too many.
    fn speech(&mut self, id: SpeechId, flow: Flow) -> Option<&mut Speech> {
        if let Some(at) = self.index(id) {
            return self.speeches.get_mut(at);
        }
        if self.retired.contains(&id) || self.speeches.len() == MAX_SPEECHES {
            return None;
        }
        self.speeches.push(Speech::new(id, flow));
        self.speeches.last_mut()
    }

    fn samples_in(&self, ms: usize) -> usize {
        ms.saturating_mul(self.rate as usize) / 1000
    }
}

/// Makes the speech flow from this sample next.
fn rewind(speech: &mut Speech, to: usize) {
    speech.from = to;
    speech.handed = to;
    speech.heard = to;
}

fn fade_out(samples: &mut [i16]) {
    let count = samples.len() as i32;
    for (n, sample) in samples.iter_mut().enumerate() {
        *sample = (i32::from(*sample) * (count - 1 - n as i32) / count) as i16;
    }
}

fn fade_in(samples: &mut [i16], fade: usize) {
    let count = fade.max(1) as i32;
    for (n, sample) in samples.iter_mut().take(fade).enumerate() {
        *sample = (i32::from(*sample) * n as i32 / count) as i16;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: SpeechId = SpeechId(1);
    const B: SpeechId = SpeechId(2);
    /// 10 ms at 8 kHz.
    const FRAME: usize = 80;

    fn playout() -> Playout {
        Playout::new(8_000, Duration::from_mins(1))
    }

    fn ms(ms: usize) -> Vec<i16> {
        (0..ms * 8).map(|n| 1_000 + n as i16).collect()
    }

    fn finished(playout: &mut Playout, id: SpeechId, length_ms: usize) {
        playout.push(id, &ms(length_ms));
        playout.finish(id);
        playout.play(id);
    }

    fn frame(playout: &mut Playout) -> Option<(SpeechId, Vec<i16>)> {
        let mut out = [7; FRAME];
        playout.next_frame(&mut out).map(|frame| {
            assert!(out[frame.samples..].iter().all(|&sample| sample == 0));
            (frame.id, out[..frame.samples].to_vec())
        })
    }

    fn frames(playout: &mut Playout, count: usize) -> Vec<i16> {
        (0..count).filter_map(|_| frame(playout)).flat_map(|(_, samples)| samples).collect()
    }

    fn events(playout: &mut Playout) -> Vec<(SpeechId, PlayoutEvent)> {
        std::iter::from_fn(|| playout.poll_event()).collect()
    }

    fn position(ms: u64) -> PlayoutEvent {
        PlayoutEvent::Position { ms }
    }

    fn drained(ms: u64) -> PlayoutEvent {
        PlayoutEvent::Drained { ms }
    }

    #[test]
    fn nothing_sounds_before_it_is_played() {
        let mut playout = playout();
        playout.push(A, &ms(50));
        assert_eq!(frame(&mut playout), None);
        playout.play(A);
        assert_eq!(frame(&mut playout), Some((A, ms(10))));
        assert_eq!(events(&mut playout), [(A, PlayoutEvent::Started)]);
    }

    #[test]
    fn what_is_handed_out_less_what_is_queued_has_been_heard() {
        let mut playout = playout();
        finished(&mut playout, A, 245);
        assert_eq!(frames(&mut playout, 30), ms(245));
        playout.set_queued_ms(100);
        assert_eq!(events(&mut playout), [(A, PlayoutEvent::Started), (A, position(145))]);
        playout.set_queued_ms(40);
        assert_eq!(events(&mut playout), []);
        playout.set_queued_ms(0);
        assert_eq!(events(&mut playout), [(A, position(245)), (A, drained(245))]);
        assert!(!playout.is_sounding());
    }

    #[test]
    fn half_a_frame_waits_for_more_until_the_speech_is_finished() {
        let mut playout = playout();
        playout.play(A);
        playout.push(A, &ms(15));
        assert_eq!(frames(&mut playout, 5).len(), FRAME);
        playout.finish(A);
        assert_eq!(frames(&mut playout, 5).len(), FRAME / 2);
    }

    #[test]
    fn a_cleared_speech_goes_on_from_where_it_was_heard() {
        let mut playout = playout();
        finished(&mut playout, A, 300);
        frames(&mut playout, 20);
        playout.set_queued_ms(100);
        events(&mut playout);
        playout.clear(A, 80);
        assert_eq!(events(&mut playout), [(A, position(120))]);

        let (id, tail) = frame(&mut playout).unwrap();
        assert_eq!((id, tail.len()), (A, 40), "a fade of 5 ms");
        assert!(tail[0] > 1_900 && tail.is_sorted_by(|a, b| a >= b) && tail[39] == 0);
        assert_eq!(frame(&mut playout), None);

        playout.set_queued_ms(0);
        playout.resume(A, 120);
        let rest = frames(&mut playout, 30);
        assert_eq!(rest[40..], ms(300)[960 + 40..]);
        assert!(rest[..40].is_sorted() && rest[0] == 0, "faded in");
        playout.set_queued_ms(0);
        assert_eq!(events(&mut playout).last(), Some(&(A, drained(300))));
    }

    #[test]
    fn a_clear_between_two_sounds_adds_no_sound() {
        let mut playout = playout();
        playout.play(A);
        playout.push(A, &ms(20));
        frames(&mut playout, 2);
        playout.clear(A, 0);
        playout.push(A, &ms(20));
        assert_eq!(frame(&mut playout), None);
    }

    #[test]
    fn a_cleared_speech_does_not_let_those_behind_it_through() {
        let mut playout = playout();
        finished(&mut playout, A, 100);
        finished(&mut playout, B, 100);
        frames(&mut playout, 12);
        playout.clear(A, 60);
        assert_eq!(frame(&mut playout).unwrap().0, A, "the fade");
        assert_eq!(frame(&mut playout), None);
        playout.cancel(A);
        assert_eq!(frames(&mut playout, 10), ms(100), "of which nothing had been heard");
    }

    #[test]
    fn a_speech_played_after_a_pause_is_heard() {
        let mut playout = playout();
        finished(&mut playout, A, 100);
        playout.clear(A, 0);
        finished(&mut playout, B, 100);
        assert_eq!(frame(&mut playout).unwrap().0, B);
    }

    #[test]
    fn a_speech_behind_another_is_not_heard_before_it() {
        let mut playout = playout();
        finished(&mut playout, A, 50);
        finished(&mut playout, B, 50);
        frames(&mut playout, 10);
        playout.set_queued_ms(30);
        assert_eq!(
            events(&mut playout),
            [(A, PlayoutEvent::Started), (B, PlayoutEvent::Started), (A, drained(50))]
        );
        playout.set_queued_ms(0);
        assert_eq!(events(&mut playout), [(B, drained(50))]);
    }

    #[test]
    fn late_audio_of_a_cancelled_speech_is_ignored() {
        let mut playout = playout();
        playout.play(A);
        playout.cancel(A);
        playout.push(A, &ms(100));
        playout.play(A);
        assert_eq!(frame(&mut playout), None);
        assert_eq!((events(&mut playout), playout.overflow()), (vec![], 0));
    }

    #[test]
    fn a_speech_without_audio_drains_at_once() {
        let mut playout = playout();
        playout.play(A);
        playout.finish(A);
        assert_eq!(events(&mut playout), [(A, drained(0))]);
    }

    #[test]
    fn clearing_what_has_no_audio_yet_tells_position_zero() {
        let mut playout = playout();
        playout.clear(A, 50);
        assert_eq!(events(&mut playout), [(A, position(0))]);
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_counted() {
        let mut playout = Playout::new(8_000, Duration::from_millis(100));
        finished(&mut playout, A, 130);
        assert_eq!(playout.overflow(), 30 * 8);
        assert_eq!(frames(&mut playout, 20).len(), 100 * 8);
        for id in 10..40 {
            playout.push(SpeechId(id), &[0; 8]);
        }
        assert_eq!(playout.overflow(), (30 + 30 - 15) * 8);
    }

    #[derive(Debug, Clone)]
    enum Call {
        Push(u64, usize),
        Finish(u64),
        Play(u64),
        Clear(u64, u32),
        Resume(u64, u64),
        Cancel(u64),
        Frame,
        Queued(u32),
    }

    fn call() -> impl Strategy<Value = Call> {
        let id = 0_u64..5;
        prop_oneof![
            4 => (id.clone(), 0_usize..900).prop_map(|(id, n)| Call::Push(id, n)),
            2 => id.clone().prop_map(Call::Finish),
            3 => id.clone().prop_map(Call::Play),
            1 => (id.clone(), 0_u32..200).prop_map(|(id, ms)| Call::Clear(id, ms)),
            1 => (id.clone(), 0_u64..300).prop_map(|(id, ms)| Call::Resume(id, ms)),
            1 => id.prop_map(Call::Cancel),
            8 => Just(Call::Frame),
            3 => (0_u32..200).prop_map(Call::Queued),
        ]
    }

    fn check(playout: &Playout) {
        for speech in &playout.speeches {
            assert!(speech.from <= speech.heard);
            assert!(speech.heard <= speech.handed);
            assert!(speech.handed <= speech.samples.len());
        }
        assert!(playout.events.len() <= MAX_EVENTS && playout.speeches.len() <= MAX_SPEECHES);
    }

    proptest! {
        #[test]
        fn no_order_of_calls_breaks_it(calls in prop::collection::vec(call(), 0..120)) {
            let mut playout = Playout::new(8_000, Duration::from_millis(300));
            let mut ended = Vec::new();
            for call in calls {
                match call {
                    Call::Push(id, count) => playout.push(SpeechId(id), &vec![5; count]),
                    Call::Finish(id) => playout.finish(SpeechId(id)),
                    Call::Play(id) => playout.play(SpeechId(id)),
                    Call::Clear(id, ms) => {
                        playout.clear(SpeechId(id), ms);
                        frame(&mut playout);
                        let silent = frame(&mut playout).is_none_or(|(next, _)| next.0 != id);
                        prop_assert!(silent, "a cleared speech is not heard");
                    }
                    Call::Resume(id, ms) => playout.resume(SpeechId(id), ms),
                    Call::Cancel(id) => playout.cancel(SpeechId(id)),
                    Call::Frame => drop(frame(&mut playout)),
                    Call::Queued(ms) => playout.set_queued_ms(ms),
                }
                check(&playout);
                while let Some((id, event)) = playout.poll_event() {
                    prop_assert!(!ended.contains(&id), "{event:?} after the end of {id:?}");
                    if matches!(event, PlayoutEvent::Drained { .. }) {
                        ended.push(id);
                    }
                }
            }
        }

        #[test]
        fn an_uninterrupted_speech_is_handed_out_whole(
            pieces in prop::collection::vec(prop::collection::vec(any::<i16>(), 0..300), 0..20),
            pulls in prop::collection::vec(0_usize..6, 1..10),
        ) {
            let mut playout = playout();
            playout.play(A);
            let (mut out, mut pulls) = (Vec::new(), pulls.iter().cycle());
            for piece in &pieces {
                playout.push(A, piece);
                out.extend(frames(&mut playout, *pulls.next().unwrap()));
            }
            playout.finish(A);
            out.extend(frames(&mut playout, 100));
            let whole = pieces.concat();
            prop_assert_eq!(&out, &whole);
            playout.set_queued_ms(0);
            let end = drained(whole.len() as u64 / 8);
            prop_assert_eq!(events(&mut playout).pop(), Some((A, end)));
        }
    }
}
