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
    assert_eq!(frame(&mut playout), None, "what it breaks off the track fades out itself");

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
