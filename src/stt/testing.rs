//! What the tests of the recognition codecs share.

use proptest::prelude::*;
use serde_json::Value;

use super::{SttEvent, dialect::Dialect};

/// Events in short, and up to where audio was settled.
pub fn play(codec: &mut impl Dialect, lines: &str) -> (Vec<String>, Vec<u64>) {
    let (mut events, mut settled) = (Vec::new(), Vec::new());
    for line in lines.lines().filter(|line| !line.is_empty()) {
        settled.extend(codec.receive(line, &mut events).unwrap().settled_ms);
    }
    (events.iter().map(short).collect(), settled)
}

pub fn short(event: &SttEvent) -> String {
    match event {
        SttEvent::Interim(told) => format!("~{}", told.text),
        SttEvent::Final(told) => told.text.clone(),
        SttEvent::Usage { .. } => "Usage".into(),
        SttEvent::Lost { .. } => "Lost".into(),
        SttEvent::Failed(_) => "Failed".into(),
        other => format!("{other:?}"),
    }
}

/// Lets a codec have a go at anything; what it tells keeps the order that sessions expect.
pub fn feed(codec: &mut impl Dialect, value: &Value, junk: &str) {
    let mut events = Vec::new();
    for text in [value.to_string(), junk.to_owned(), value.to_string()] {
        let _ = codec.receive(&text, &mut events);
    }
    let mut speaking = false;
    for event in &events {
        match event {
            SttEvent::SpeechStarted => speaking = true,
            SttEvent::Final(told) => assert!(speaking && !told.text.is_empty()),
            SttEvent::EndOfTurn => assert!(std::mem::take(&mut speaking)),
            _ => {}
        }
    }
}

/// JSON made of the words that the providers use.
pub fn any_json() -> impl Strategy<Value = Value> {
    let kinds = vec!["TurnInfo", "Turn", "Update", "StartOfTurn", "EndOfTurn", "SpeechStarted"];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
        proptest::sample::select(kinds).prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 5, |inner| {
        let key = proptest::sample::select(vec![
            "type",
            "event",
            "turn_index",
            "transcript",
            "words",
            "word",
            "text",
            "start",
            "end",
            "confidence",
            "audio_window_start",
            "audio_window_end",
            "end_of_turn",
            "turn_is_formatted",
            "turn_order",
            "error",
        ]);
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((key, inner), 0..6).prop_map(|fields| {
                Value::Object(fields.into_iter().map(|(key, v)| (key.to_owned(), v)).collect())
            }),
        ]
    })
}
