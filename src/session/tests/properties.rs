//! Whatever happens, in whatever order: the invariants of the machine hold after every step, and a
//! call left alone ends in IDLE.

mod calls;
mod world;

use std::time::Duration;

use proptest::prelude::*;

use self::{
    calls::{call, simulated},
    world::World,
};
use crate::session::{
    input::{Input, ParticipantEvent, SpeakerId},
    machine::LAST_WORDS,
    settings::{Detection, Interruption, Settings},
    simulation::ms,
    state::{AgentState, CloseReason},
};

/// A step of a random schedule: what happens, with which numbers, after how long.
#[derive(Debug, Clone, Copy)]
struct Step {
    what: u8,
    a: u16,
    b: u16,
    gap_ms: u32,
    /// The driver is late: timers fire after the input, not at their time.
    late: bool,
}

fn step() -> impl Strategy<Value = Step> {
    let gap = prop_oneof![4 => Just(0u32), 6 => 0..120u32, 4 => 100..900u32, 1 => 900..8_000u32];
    (any::<u8>(), any::<u16>(), any::<u16>(), gap, prop::bool::weighted(0.1))
        .prop_map(|(what, a, b, gap_ms, late)| Step { what, a, b, gap_ms, late })
}

fn settings() -> impl Strategy<Value = Settings> {
    let flags = prop::collection::vec(any::<bool>(), 12);
    (flags, 0..3usize, prop::bool::weighted(0.1)).prop_map(|(flags, words, transcribe_only)| {
        let said = |is: bool, text: &str| is.then(|| text.to_owned());
        Settings {
            system_prompt: "Be brief.".into(),
            greeting: said(flags[0], "greeting one two three"),
            farewell: said(flags[1], "farewell one two three"),
            greeting_interruptible: flags[2],
            interruptible: flags[3],
            close_on_participant_left: flags[4],
            apology: if flags[5] { "apology one two three".into() } else { String::new() },
            max_speak: if flags[6] { ms(30_000) } else { ms(1_500) },
            min_interruption_words: words,
            preemptive_generation: flags[7],
            interruption: if flags[8] { Interruption::Adaptive } else { Interruption::Speech },
            detection: match (flags[9], flags[10]) {
                (true, true) => Detection::Silence,
                (true, false) => Detection::Stt,
                (false, _) => Detection::Heuristic,
            },
            dynamic_endpointing: flags[10],
            away_prompt: said(flags[11], "away one two three"),
            transcribe_only,
            ..Settings::default()
        }
    })
}

fn runs(settings: Settings, steps: &[Step]) {
    let mut world = World::new(settings);
    let event = ParticipantEvent::Joined { identity: "user1".into(), name: "user1".into() };
    world.give(Input::Participant { speaker: SpeakerId(1), event });
    for step in steps {
        let gap = Duration::from_millis(u64::from(step.gap_ms));
        if step.late {
            world.now += gap;
        } else {
            world.pass(gap);
        }
        if world.closed {
            break;
        }
        if let Some(input) = world.input(*step) {
            world.give(input);
        }
    }
    // Nothing more happens: the machine finds its own way out of every state.
    world.pass(Duration::from_mins(10));
    assert!(world.closed || world.state == AgentState::Idle, "stuck in {:?}", world.state);
    world.check_history();
    world.give(Input::Close { reason: CloseReason::RoomClosed });
    world.pass(LAST_WORDS);
    assert!(world.closed);
    world.give(Input::Ready);
    for text in &world.expected {
        let times = world.user_rows.iter().filter(|row| *row == text).count();
        assert_eq!(times, 1, "the final {text:?} came out {times} times");
    }
}

/// A hundred thousand schedules altogether, in as many tests as a machine has cores to run them.
macro_rules! schedules {
    ($($inputs:ident and $calls:ident),+) => {$(
        proptest! {
            #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

            #[test]
            fn $inputs(
                settings in settings(),
                steps in prop::collection::vec(step(), 1..120),
            ) {
                runs(settings, &steps);
            }
        }

        proptest! {
            #![proptest_config(ProptestConfig { cases: 5_000, failure_persistence: None, ..ProptestConfig::default() })]

            #[test]
            fn $calls(random in call()) {
                simulated(&random);
            }
        }
    )+};
}

schedules!(
    any_inputs_in_any_order_keep_the_invariants_1 and any_call_ends_in_idle_with_every_word_kept_1,
    any_inputs_in_any_order_keep_the_invariants_2 and any_call_ends_in_idle_with_every_word_kept_2,
    any_inputs_in_any_order_keep_the_invariants_3 and any_call_ends_in_idle_with_every_word_kept_3,
    any_inputs_in_any_order_keep_the_invariants_4 and any_call_ends_in_idle_with_every_word_kept_4
);
