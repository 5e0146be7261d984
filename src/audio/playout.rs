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

use crate::{audio::fade::fade_in, session::input::PlayoutEvent, tts::SpeechId};

/// Speeches held at once; pushing to one more is an overflow.
const MAX_SPEECHES: usize = 16;
/// Ended speeches that are remembered, so that late audio of theirs is ignored.
const MAX_RETIRED: usize = 64;
/// Events kept for a driver that does not poll; then the oldest go.
const MAX_EVENTS: usize = 64;
/// Heard audio between two `Position` events.
const POSITION_MS: u64 = 100;
/// Length of the fade where speech goes on.
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
    /// Nothing flows on until `resume`, `cancel`, or the `play` of another speech.
    pub fn clear(&mut self, id: SpeechId, unheard_ms: u32) {
        self.set_queued_ms(unheard_ms);
        self.queued = 0;
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
        let frame = self.take_speech(out)?;
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
        self.queued > 0 || self.next_speech().is_some()
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
            fade_in(&mut out[..samples.min(fade)]);
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

#[cfg(test)]
mod tests;
