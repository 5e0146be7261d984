//! Speeches whose socket is well.

use super::*;

#[test]
fn the_first_clause_goes_out_while_the_model_still_talks() {
    let mut bench = Bench::warm(true);
    bench.say(1, "Sure.");
    assert_eq!(bench.sent(), [""; 0]);
    bench.say(1, " I can");
    assert_eq!(bench.sent(), ["init s1-1", "s1-1:Sure. "]);
}

#[test]
fn the_first_words_do_not_wait_for_a_slow_model() {
    let mut bench = Bench::warm(true);
    bench.say(1, "Well then");
    bench.run_until(79);
    assert_eq!(bench.sent(), [""; 0]);
    bench.run_until(80);
    assert_eq!(bench.sent(), ["init s1-1", "s1-1:Well "]);
}

#[test]
fn later_words_are_collected_until_the_audio_runs_out() {
    let mut bench = Bench::warm(true);
    bench.say(1, "Good morning to everybody out there, and");
    assert_eq!(bench.sent(), ["init s1-1", "s1-1:Good morning to everybody out there, "]);
    bench.run_until(100);
    // 37 characters: 370 ms and, with a long tail, 1000 ms in all.
    bench.speak("s1-1", "Good morning to everybody out there, ");
    bench.receive(&json!({"contextId": "s1-1", "audio": STANDARD.encode(vec![0; 630 * 32])}));
    bench.say(1, " welcome to the");
    bench.run_until(699);
    assert_eq!(bench.sent(), [""; 0]);
    bench.run_until(700);
    assert_eq!(bench.sent(), ["s1-1:and welcome to "], "400 ms before silence");
}

#[test]
fn a_finished_speech_is_closed_after_its_first_audio_and_ends_with_the_servers_word() {
    let mut bench = Bench::warm(true);
    bench.say(1, "Hello there.");
    bench.finish(1);
    assert_eq!(bench.sent(), ["init s1-1", "s1-1:Hello there. "]);
    bench.speak("s1-1", "Hello th");
    assert_eq!(bench.sent(), ["close s1-1"]);
    bench.speak("s1-1", "ere. ");
    assert_eq!(
        bench.told(),
        ["1 audio 80", "1 words \"Hello \"", "1 audio 50"],
        "the last word is still open"
    );
    bench.ended("s1-1");
    assert_eq!(bench.told(), ["usage 12", "1 words \"there.\"", "1 end"]);
    bench.run_until(10_000);
    assert_eq!(bench.told(), [""; 0]);
}

#[test]
fn the_end_is_not_waited_for_long_when_all_has_been_spoken() {
    let mut bench = Bench::warm(true);
    bench.say(1, "Hello.");
    bench.finish(1);
    bench.speak("s1-1", "Hello. ");
    bench.run_until(999);
    assert_eq!(bench.told(), ["1 audio 70"]);
    bench.run_until(1_000);
    assert_eq!(bench.told(), ["usage 6", "1 words \"Hello.\"", "1 end"]);
    assert_eq!(bench.sent(), ["init s1-1", "s1-1:Hello. ", "close s1-1"]);
}

#[test]
fn two_speeches_share_one_socket() {
    let mut bench = Bench::warm(true);
    for speech in [1, 2] {
        bench.say(speech, "Yes.");
        bench.finish(speech);
    }
    bench.speak("s2-2", "Yes. ");
    bench.ended("s2-2");
    bench.speak("s1-1", "Yes. ");
    bench.ended("s1-1");
    assert_eq!(
        bench.told(),
        [
            "2 audio 50",
            "usage 4",
            "2 words \"Yes.\"",
            "2 end",
            "1 audio 50",
            "usage 4",
            "1 words \"Yes.\"",
            "1 end",
        ]
    );
    assert!(!bench.actions().contains(&Action::Connect));
}

#[test]
fn cancel_closes_the_context_and_drops_all_that_still_comes() {
    let mut bench = Bench::warm(true);
    bench.say(1, "One two three four five. Six");
    bench.speak("s1-1", "One two ");
    bench.cancel(1);
    bench.speak("s1-1", "three ");
    bench.say(1, "more.");
    bench.finish(1);
    assert_eq!(bench.told(), ["usage 25"]);
    assert_eq!(bench.sent().last().unwrap(), "close s1-1");
    bench.run_until(20_000);
    assert_eq!(bench.told(), [""; 0]);
}

#[test]
fn a_sixth_context_waits_until_the_server_has_ended_one() {
    let mut bench = Bench::warm(true);
    for speech in 1..=6 {
        bench.say(speech, "Hello you. ");
    }
    let sent = bench.sent();
    assert!(sent.contains(&"init s5-5".into()) && !sent.contains(&"init s6-6".into()), "{sent:?}");
    bench.cancel(2);
    assert_eq!(bench.sent(), ["close s2-2"], "the server still counts it");
    bench.ended("s2-2");
    assert_eq!(bench.sent(), ["init s6-6", "s6-6:Hello you. "]);
}

#[test]
fn a_cancelled_context_that_never_ends_is_forgotten() {
    let mut bench = Bench::warm(true);
    for speech in 1..=5 {
        bench.say(speech, "Hello you. ");
        bench.cancel(speech);
    }
    bench.sent();
    bench.say(6, "Hello you. ");
    assert_eq!(bench.sent(), [""; 0]);
    bench.run_until(3_000);
    assert_eq!(bench.sent(), ["init s6-6", "s6-6:Hello you. "]);
}

#[test]
fn a_slow_model_is_not_a_stall() {
    let mut bench = Bench::warm(true);
    bench.say(1, "One two three four five. ");
    bench.speak("s1-1", "One two three four five. ");
    bench.told();
    bench.sent();
    bench.run_until(150_000);
    assert_eq!(bench.told(), [""; 0]);
    assert_eq!(bench.sent(), ["alive s1-1", "alive s1-1"], "and the context is kept alive");
}

#[test]
fn silent_text_ends_without_a_word_to_the_server() {
    let mut bench = Bench::warm(true);
    bench.say(1, " … ");
    bench.finish(1);
    bench.finish(2);
    assert_eq!(bench.told(), ["1 end", "2 end"]);
    assert_eq!(bench.sent(), [""; 0]);
}

#[test]
fn a_text_without_end_is_refused() {
    let mut bench = Bench::warm(true);
    for _ in 0..40 {
        bench.say(1, &"word ".repeat(200));
    }
    assert_eq!(
        bench.told().last().unwrap(),
        "1 error the provider refused the request: the text is too long"
    );
    assert_eq!(bench.sent().last().unwrap(), "close s1-1");
}

#[test]
fn unread_events_are_not_taken_for_a_stall() {
    let mut bench = Bench::warm(true);
    bench.say(1, "One two three four five. ");
    for _ in 0..MAX_EVENTS {
        bench.receive(&json!({"contextId": "s1-1", "audio": "AAAA"}));
    }
    bench.run_until(60_000);
    assert!(bench.machine.is_congested());
    assert!(bench.told().iter().all(|told| told.starts_with("1 audio")));
}

#[test]
fn half_a_sample_is_joined_with_its_other_half() {
    let mut bench = Bench::warm(true);
    bench.say(1, "Hello there. ");
    bench.receive(&json!({"contextId": "s1-1", "audio": STANDARD.encode([1, 0, 2])}));
    bench.receive(&json!({"contextId": "s1-1", "audio": STANDARD.encode([0, 3, 0])}));
    let samples: Vec<i16> = bench
        .events()
        .into_iter()
        .flat_map(|event| match event {
            TtsEvent::Audio { samples, .. } => samples,
            _ => vec![],
        })
        .collect();
    assert_eq!(samples, [1, 2, 3]);
}
