//! The wire, from recorded frames and by hand.

use proptest::prelude::*;
use serde_json::{Value, json};

use url::Url;

use super::{incoming::MAX_ALIGNED_MS, *};

fn query() -> Query<'static> {
    Query {
        model_id: "eleven_turbo_v2_5",
        output_format: OutputFormat::Pcm24000,
        inactivity_timeout: 180,
        auto_mode: true,
        language_code: None,
    }
}

fn value(message: &str) -> Value {
    serde_json::from_str(message).unwrap()
}

#[test]
fn the_address_keeps_the_version_and_turns_http_into_ws() {
    let base = Url::parse("http://127.0.0.1:9100/v1/").unwrap();
    let url = socket_url(&base, "a voice/../x", true, &query());
    assert_eq!(
        url.as_str(),
        "ws://127.0.0.1:9100/v1/text-to-speech/a%20voice%2F..%2Fx/multi-stream-input\
         ?model_id=eleven_turbo_v2_5&output_format=pcm_24000&inactivity_timeout=180\
         &sync_alignment=true&auto_mode=true"
    );
    let base = Url::parse("https://api.elevenlabs.io/v1").unwrap();
    let german = Query { language_code: Some("de"), auto_mode: false, ..query() };
    let url = socket_url(&base, "v", false, &german);
    assert_eq!(url.scheme(), "wss");
    assert_eq!(url.path(), "/v1/text-to-speech/v/stream-input");
    assert!(url.query().unwrap().ends_with("&sync_alignment=true&language_code=de"));
}

#[test]
fn every_message_has_the_documented_shape() {
    assert_eq!(
        value(&init(Some("c1"), VoiceSettings::default(), &[50, 90], &[])),
        json!({"text": " ", "context_id": "c1",
               "voice_settings": {"stability": 0.5, "similarity_boost": 0.75},
               "generation_config": {"chunk_length_schedule": [50, 90]}})
    );
    assert_eq!(
        value(&init(None, VoiceSettings::default(), &[], &[])),
        json!({"text": " ", "voice_settings": {"stability": 0.5, "similarity_boost": 0.75}})
    );
    assert_eq!(
        value(&text(Some("c1"), "Hello", true)),
        json!({"text": "Hello ", "context_id": "c1", "flush": true})
    );
    assert_eq!(value(&text(None, "Hello ", false)), json!({"text": "Hello "}));
    assert_eq!(value(&flush(Some("c1"))), json!({"text": " ", "context_id": "c1", "flush": true}));
    assert_eq!(value(&close_context("c1")), json!({"context_id": "c1", "close_context": true}));
    assert_eq!(value(&keep_alive(Some("c1"))), json!({"text": "", "context_id": "c1"}));
    assert_eq!(value(&keep_alive(None)), json!({"text": " "}));
    assert_eq!(value(&end_of_stream()), json!({"text": ""}));
}

#[test]
fn every_spelling_of_the_keys_is_read() {
    let expected = Frame::Speech {
        context: Some("c1".into()),
        pcm: vec![1, 0, 2, 0],
        alignment: vec![
            AlignedChar { text: "H".into(), start_ms: 0, duration_ms: 40 },
            AlignedChar { text: "i".into(), start_ms: 40, duration_ms: 60 },
        ],
        is_final: false,
    };
    for (context, normalized, starts, durations, last) in [
        ("contextId", "normalizedAlignment", "charStartTimesMs", "charDurationsMs", "isFinal"),
        ("context_id", "normalized_alignment", "charsStartTimesMs", "charsDurationsMs", "is_final"),
        ("contextId", "alignment", "char_start_times_ms", "char_durations_ms", "isFinal"),
        ("contextId", "alignment", "chars_start_times_ms", "chars_durations_ms", "is_final"),
    ] {
        let frame = json!({
            "audio": "AQACAA==", context: "c1", last: null,
            normalized: {"chars": ["H", "i"], starts: [0, 40.0], durations: [40, 60]},
        });
        assert_eq!(parse(&frame.to_string()).unwrap(), expected, "{frame}");
        let end = json!({"audio": null, context: "c1", last: true});
        assert_eq!(
            parse(&end.to_string()).unwrap(),
            Frame::Speech {
                context: Some("c1".into()),
                pcm: vec![],
                alignment: vec![],
                is_final: true
            }
        );
    }
}

#[test]
fn the_text_as_written_goes_before_the_text_as_normalised() {
    let one = |c: &str| json!({"chars": [c], "charStartTimesMs": [0], "charDurationsMs": [9]});
    let frame = json!({"audio": "AAA=", "alignment": one("3"), "normalizedAlignment": one("t")});
    let Frame::Speech { alignment, .. } = parse(&frame.to_string()).unwrap() else { panic!() };
    assert_eq!(alignment[0].text, "3");
}

#[test]
fn errors_are_told_apart() {
    let error = |text: &str| match parse(text).unwrap() {
        Frame::Error(error) => error,
        other => panic!("{other:?}"),
    };
    let key = error(r#"{"message":"Invalid API key","error":"invalid_api_key","code":1008}"#);
    assert!(key.is_unauthorized());
    assert_eq!(key.to_string(), "invalid_api_key: Invalid API key");
    let deep = error(r#"{"detail":{"status":"invalid_api_key","message":"no"}}"#);
    assert!(deep.is_unauthorized());
    let quota = error(r#"{"message":"Too much.","error":"quota_exceeded","code":1008}"#);
    assert!(!quota.is_unauthorized() && !quota.is_retryable());
    let full = error(r#"{"error":"max_active_contexts","context_id":"c"}"#);
    assert!(full.is_retryable());
    assert_eq!(full.context.as_deref(), Some("c"));
    assert!(error(r#"{"error":17}"#).is_retryable());
}

#[test]
fn dictionaries_are_named_when_a_context_opens() {
    let locator = |id: &str, version: Option<&str>| DictionaryLocator {
        pronunciation_dictionary_id: id.into(),
        version_id: version.map(String::from),
    };
    let dictionaries = [locator("a", Some("v1")), locator("b", None)];
    let sent = value(&init(Some("c"), VoiceSettings::default(), &[], &dictionaries));
    assert_eq!(
        sent["pronunciation_dictionary_locators"],
        json!([
            {"pronunciation_dictionary_id": "a", "version_id": "v1"},
            {"pronunciation_dictionary_id": "b"}
        ])
    );
}

#[test]
fn recorded_frames_are_read() {
    for (name, audio) in [
        ("multi", include_str!("../../../../fixtures/providers/elevenlabs-multi.jsonl")),
        ("single", include_str!("../../../../fixtures/providers/elevenlabs-single.jsonl")),
    ] {
        let frames: Vec<_> = audio.lines().map(|line| parse(line).unwrap()).collect();
        assert!(
            matches!(frames.last(), Some(Frame::Speech { is_final: true, .. })),
            "{name}: the last frame closes"
        );
        let text: String = frames
            .iter()
            .filter_map(|frame| match frame {
                Frame::Speech { alignment, .. } => Some(alignment),
                _ => None,
            })
            .flatten()
            .map(|c| c.text.as_str())
            .collect();
        assert_eq!(text, "Hello there. ", "{name}");
    }
    let errors = include_str!("../../../../fixtures/providers/elevenlabs-errors.jsonl");
    for line in errors.lines() {
        assert!(matches!(parse(line).unwrap(), Frame::Error(_)), "{line}");
    }
}

#[test]
fn lists_of_unequal_length_are_cut_to_the_shorter() {
    let frame = r#"{"alignment":{"chars":["a","b","c"],"charStartTimesMs":[-5,null],"charDurationsMs":[1e300]}}"#;
    let Frame::Speech { alignment, .. } = parse(frame).unwrap() else { panic!() };
    assert_eq!(alignment.len(), 2);
    assert_eq!(alignment[0].start_ms, 0);
    assert_eq!(alignment[0].duration_ms, MAX_ALIGNED_MS as u64);
    assert_eq!(alignment[1].duration_ms, 0);
}

proptest! {
    #[test]
    fn junk_never_panics(junk in "\\PC{0,200}") {
        let _ = parse(&junk);
    }

    #[test]
    fn junk_in_every_field_never_panics(
        audio in "[A-Za-z0-9+/=]{0,40}",
        chars in proptest::collection::vec("\\PC{0,3}", 0..8),
        starts in proptest::collection::vec(any::<f64>(), 0..8),
        durations in proptest::collection::vec(any::<f64>(), 0..8),
        is_final in any::<Option<bool>>(),
    ) {
        let frame = json!({"audio": audio, "isFinal": is_final, "alignment":
            {"chars": chars, "charStartTimesMs": starts, "charDurationsMs": durations}});
        if let Ok(Frame::Speech { alignment, .. }) = parse(&frame.to_string()) {
            prop_assert!(alignment.iter().all(|c| c.start_ms <= MAX_ALIGNED_MS as u64));
        }
    }

    #[test]
    fn a_piece_always_ends_in_a_space(piece in "\\PC{0,40}") {
        let sent = value(&text(Some("c"), &piece, false));
        let sent = sent["text"].as_str().unwrap();
        prop_assert!(sent.ends_with(' '));
        prop_assert!(sent.starts_with(&piece));
    }
}
