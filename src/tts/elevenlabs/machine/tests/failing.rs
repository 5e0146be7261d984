//! Sockets that are lost, refused or replaced, and whatever may happen.

use proptest::prelude::*;

use super::{super::sockets::MAX_CONTEXTS, *};

#[test]
fn a_socket_lost_before_the_first_audio_costs_only_a_resend() {
    let mut bench = Bench::warm(true);
    bench.say(1, "Sure. I can");
    bench.sent();
    bench.lost();
    assert_eq!(bench.sent(), ["Connect"]);
    bench.say(1, " help. ");
    bench.connected();
    assert_eq!(bench.sent(), ["init s1-2", "s1-2:Sure. I can help. "]);
    assert_eq!(bench.told(), [""; 0]);
    bench.finish(1);
    bench.speak("s1-2", "Sure. I can help. ");
    bench.ended("s1-2");
    assert_eq!(
        bench.told(),
        ["1 audio 180", "1 words \"Sure. I can \"", "usage 24", "1 words \"help. \"", "1 end"]
    );
}

#[test]
fn a_socket_lost_in_mid_speech_is_told() {
    let mut bench = Bench::warm(true);
    bench.say(1, "One two three four five. Six");
    bench.speak("s1-1", "One two ");
    bench.lost();
    let told = bench.told();
    assert_eq!(told.last().unwrap(), "1 error the stream broke off: reset");
    assert_eq!(bench.sent().last().unwrap(), "Connect", "the next speech finds a connection");
}

#[test]
fn a_socket_lost_between_two_pieces_is_not_heard() {
    let mut bench = Bench::warm(true);
    bench.say(1, "One two three four. ");
    bench.speak("s1-1", "One two three four. ");
    bench.sent();
    bench.lost();
    bench.connected();
    bench.say(1, "And five. ");
    bench.finish(1);
    assert_eq!(bench.sent(), ["Connect", "init s1-2", "s1-2:And five. "]);
    bench.speak("s1-2", "And five. ");
    bench.ended("s1-2");
    let words: String = bench
        .events()
        .into_iter()
        .filter_map(|event| match event {
            TtsEvent::Alignment { words, .. } => Some(words),
            _ => None,
        })
        .flatten()
        .map(|word| word.text)
        .collect();
    assert_eq!(words, "One two three four. And five. ");
}

#[test]
fn all_of_the_audio_before_the_loss_is_an_end() {
    let mut bench = Bench::warm(true);
    bench.say(1, "Hello there.");
    bench.finish(1);
    bench.speak("s1-1", "Hello there.");
    bench.lost();
    assert_eq!(bench.told().last().unwrap(), "1 end");
}

#[test]
fn drops_before_audio_are_not_tried_for_ever() {
    let mut bench = Bench::warm(true);
    bench.say(1, "Hello there. ");
    for _ in 0..2 {
        bench.lost();
        bench.connected();
        assert_eq!(bench.told(), [""; 0]);
    }
    bench.lost();
    assert_eq!(bench.told(), ["usage 39", "1 error the stream broke off: reset"]);
}

#[test]
fn no_audio_in_time_is_tried_once_more_on_a_new_socket() {
    let mut bench = Bench::warm(true);
    bench.say(1, "Hello there. ");
    bench.sent();
    bench.run_until(2_499);
    assert_eq!(bench.sent(), [""; 0]);
    bench.run_until(2_500);
    assert_eq!(bench.sent(), ["Close", "Connect"]);
    bench.connected();
    assert_eq!(bench.sent(), ["init s1-2", "s1-2:Hello there. "]);
    bench.run_until(5_000);
    assert_eq!(bench.told(), ["usage 26", "1 error no audio within 2500 ms"]);
}

#[test]
fn a_stall_in_mid_speech_is_told() {
    let mut bench = Bench::warm(true);
    bench.say(1, "One two three four five. ");
    bench.run_until(100);
    bench.speak("s1-1", "One two ");
    bench.run_until(2_600);
    assert_eq!(
        bench.told().last().unwrap(),
        "1 error the stream broke off: no audio within 2500 ms"
    );
}

#[test]
fn without_a_connection_a_speech_waits_its_time_and_no_longer() {
    let mut bench = Bench::cold(true);
    bench.say(1, "Hello there. ");
    let mut attempts = 0;
    while bench.now < bench.start + Duration::from_millis(2_600) && bench.machine.connecting {
        attempts += 1;
        bench.unreachable();
        let mut ms = (bench.now - bench.start).as_millis() as u64;
        while !bench.machine.connecting && ms < 2_600 {
            ms += 10;
            bench.run_until(ms);
        }
    }
    assert_eq!(bench.told(), ["1 error the provider cannot be reached: down"]);
    assert!((5..=8).contains(&attempts), "{attempts} attempts");
}

#[test]
fn an_idle_machine_retries_by_the_usual_back_off_and_at_once_when_needed() {
    let mut bench = Bench::warm(true);
    bench.lost();
    bench.run_until(999);
    assert_eq!(bench.sent(), [""; 0]);
    bench.run_until(1_000);
    assert_eq!(bench.sent(), ["Connect"]);
    bench.unreachable();
    bench.run_until(2_000);
    assert_eq!(bench.sent(), [""; 0]);
    bench.say(1, "Hi");
    assert_eq!(bench.sent(), ["Connect"]);
}

#[test]
fn a_socket_that_the_server_closes_every_minute_stays_warm() {
    let mut bench = Bench::warm(true);
    for minute in 1..20 {
        bench.run_until(minute * 60_000);
        bench.lost();
        bench.run_until(minute * 60_000 + 1_000);
        assert_eq!(bench.sent(), ["Connect"]);
        bench.connected();
    }
}

#[test]
fn wrong_credentials_are_told_to_each_speech_without_a_storm() {
    let mut bench = Bench::cold(true);
    let refusal = Refusal::Fatal(TtsError::Unauthorized { status: 401 });
    bench.machine.handle_refused(refusal.clone(), bench.now);
    bench.run_until(100_000);
    assert_eq!(bench.sent(), [""; 0]);
    bench.say(1, "Hello there. ");
    assert_eq!(bench.sent(), ["Connect"]);
    bench.machine.handle_refused(refusal, bench.now);
    assert_eq!(bench.told(), ["1 error the provider refused the credentials (HTTP 401)"]);
    bench.say(1, "More. ");
    bench.run_until(200_000);
    assert_eq!(bench.sent(), [""; 0]);
    assert_eq!(bench.told(), [""; 0]);
}

#[test]
fn a_key_refused_in_a_message_is_told_and_not_tried_again() {
    let mut bench = Bench::warm(true);
    bench.say(1, "Hello there. ");
    bench.sent();
    bench.receive(&json!({"message": "no", "error": "invalid_api_key", "code": 1008}));
    bench.lost();
    bench.run_until(100_000);
    assert_eq!(
        bench.told(),
        ["usage 13", "1 error the provider refused the credentials (HTTP 401)"]
    );
    assert!(!bench.actions().contains(&Action::Connect));
}

#[test]
fn a_request_that_is_refused_is_told_with_the_reason() {
    let mut bench = Bench::warm(true);
    bench.say(1, "Hello there. ");
    bench.receive(&json!({"message": "Too much.", "error": "quota_exceeded", "code": 1008}));
    assert_eq!(
        bench.told().last().unwrap(),
        "1 error the provider refused the request: quota_exceeded: Too much."
    );
}

#[test]
fn too_many_contexts_at_the_server_lead_to_a_new_socket() {
    let mut bench = Bench::warm(true);
    bench.say(1, "Hello there. ");
    bench.sent();
    bench.receive(&json!({"error": "max_active_contexts", "code": 1008}));
    assert_eq!(bench.sent(), ["Close", "Connect"]);
    bench.connected();
    assert_eq!(bench.sent(), ["init s1-2", "s1-2:Hello there. "]);
}

#[test]
fn an_idle_socket_is_replaced_before_the_server_closes_it() {
    let mut bench = Bench::warm(true);
    bench.run_until(134_999);
    assert_eq!(bench.sent(), [""; 0]);
    bench.run_until(135_000);
    assert_eq!(bench.sent(), ["Connect"]);
    bench.connected();
    assert_eq!(bench.sent(), ["Promote"]);
    bench.run_until(136_000);
    assert_eq!(bench.sent(), [""; 0]);
}

#[test]
fn a_replacement_that_cannot_be_had_is_not_hammered_for() {
    let mut bench = Bench::warm(true);
    bench.run_until(135_000);
    for _ in 0..5 {
        assert_eq!(bench.sent(), ["Connect"]);
        bench.unreachable();
        let ms = (bench.now - bench.start).as_millis() as u64;
        bench.run_until(ms + 1_999);
        assert_eq!(bench.sent(), [""; 0]);
        bench.run_until(ms + 2_000);
    }
}

#[test]
fn an_end_without_audio_is_tried_again_and_then_told() {
    let mut bench = Bench::warm(true);
    bench.say(1, "Hello there. ");
    bench.finish(1);
    for context in ["s1-1", "s1-2"] {
        bench.ended(context);
        assert_eq!(bench.told(), [""; 0]);
    }
    bench.ended("s1-3");
    assert_eq!(
        bench.told().last().unwrap(),
        "1 error the stream broke off: the speech ended without audio"
    );
}

#[test]
fn a_single_stream_uses_a_socket_up_while_the_next_is_opened() {
    let mut bench = Bench::warm(false);
    bench.say(1, "Hello there. ");
    bench.finish(1);
    assert_eq!(bench.sent(), ["init -", "-:Hello there. ", "Connect", "eos"]);
    bench.connected();
    bench.say(2, "And more. ");
    assert_eq!(bench.sent(), [""; 0], "one speech at a time");
    bench.speak("", "Hello there. ");
    bench.ended("");
    assert_eq!(bench.sent(), ["Promote", "init -", "-:And more. ", "Connect"]);
    assert_eq!(bench.told().last().unwrap(), "1 end");
    bench.cancel(2);
    assert_eq!(bench.sent(), ["Close"], "closing is how a single stream is cancelled");
    bench.connected();
    bench.say(3, "Third one. ");
    assert_eq!(bench.sent(), ["init -", "-:Third one. ", "Connect"]);
}

#[test]
fn a_spare_that_cannot_be_had_does_not_disturb_the_speech() {
    let mut bench = Bench::warm(false);
    bench.say(1, "Hello there. ");
    bench.sent();
    bench.unreachable();
    bench.say(1, "More of it. ");
    bench.finish(1);
    bench.speak("", "Hello there. More of it. ");
    bench.ended("");
    assert_eq!(bench.told().last().unwrap(), "1 end");
    assert_eq!(bench.sent(), ["-:More of it. ", "eos", "Close", "Connect"]);
}

/// What may happen to a machine.
#[derive(Debug, Clone)]
enum Step {
    Say(u64, &'static str),
    Finish(u64),
    Cancel(u64),
    Connected,
    Unreachable,
    Lost,
    Spoken(u64, &'static str),
    Ended(u64),
    Junk(String),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let text = prop_oneof![
        Just("Hello there. "),
        Just("and"),
        Just(" "),
        Just("…"),
        Just("One, two, three and more "),
    ];
    prop_oneof![
        4 => (1..9_u64, text.clone()).prop_map(|(id, text)| Step::Say(id, text)),
        2 => (1..9_u64).prop_map(Step::Finish),
        1 => (1..9_u64).prop_map(Step::Cancel),
        2 => Just(Step::Connected),
        1 => Just(Step::Unreachable),
        1 => Just(Step::Lost),
        4 => (0..8_u64, text).prop_map(|(at, text)| Step::Spoken(at, text)),
        2 => (0..8_u64).prop_map(Step::Ended),
        1 => "\\PC{0,20}".prop_map(Step::Junk),
        2 => (0..4_000_u64).prop_map(Step::Wait),
    ]
}

proptest! {
    #[test]
    fn every_finished_speech_ends_exactly_once_whatever_happens(
        multi in any::<bool>(),
        steps in proptest::collection::vec(step(), 0..80),
    ) {
        let mut bench = Bench::cold(multi);
        let mut told = Vec::new();
        let mut open = Vec::new();
        for step in steps {
            // Only what a driver can do: connections come when asked for, messages over a socket.
            let connecting = bench.machine.connecting;
            let socket = bench.machine.current.is_some();
            match step {
                Step::Say(id, text) => bench.say(id, text),
                Step::Finish(id) => bench.finish(id),
                Step::Cancel(id) => bench.cancel(id),
                Step::Connected if connecting => bench.connected(),
                Step::Unreachable if connecting => bench.unreachable(),
                Step::Lost if socket => bench.lost(),
                Step::Spoken(at, text) if socket => {
                    if let Some(name) = open.get(at as usize) {
                        let name: &String = name;
                        bench.speak(name, text);
                    }
                }
                Step::Ended(at) if socket => {
                    if let Some(name) = open.get(at as usize) {
                        let name: &String = name;
                        bench.ended(name);
                    }
                }
                Step::Junk(junk) => { let _ = bench.machine.handle_message(&junk, bench.now); }
                Step::Wait(ms) => {
                    let at = (bench.now - bench.start).as_millis() as u64;
                    bench.run_until(at + ms);
                }
                _ => {}
            }
            open = bench.machine.speeches.iter()
                .filter_map(|speech| speech.context.as_ref().map(|context| context.name.clone()))
                .collect();
            prop_assert!(bench.machine.contexts() <= MAX_CONTEXTS);
            told.extend(bench.told());
            bench.actions();
        }
        let finished: Vec<u64> = bench.machine.speeches.iter().map(|speech| speech.id.0).collect();
        for id in finished {
            bench.finish(id);
        }
        bench.run_until(60_000 + (bench.now - bench.start).as_millis() as u64);
        if bench.machine.connecting && !bench.machine.speeches.is_empty() {
            bench.unreachable();
            bench.run_until(60_000 + (bench.now - bench.start).as_millis() as u64);
        }
        told.extend(bench.told());
        prop_assert!(bench.machine.speeches.is_empty(), "{:?}", bench.machine.speeches);
        for id in 1..9 {
            let ends = told.iter().filter(|told| {
                told.starts_with(&format!("{id} end")) || told.starts_with(&format!("{id} error"))
            });
            prop_assert!(ends.count() <= 1);
        }
    }
}
