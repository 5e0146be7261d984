//! What the tests of the model codecs share.

use proptest::prelude::*;
use serde_json::Value;

use super::{
    model::{Piece, TokenUsage, ToolCall},
    sse::SseEvent,
    streaming::{Progress, Reader, Wire},
};

/// Plays recorded frames, one JSON a line; an Anthropic event's name is its `type`.
pub fn play(wire: &impl Wire, lines: &str) -> (String, Vec<ToolCall>, Option<TokenUsage>) {
    let mut reader = wire.reader();
    let mut pieces = Vec::new();
    let mut progress = Progress::More;
    for line in lines.lines().filter(|line| !line.is_empty()) {
        let event = SseEvent { event: String::new(), data: line.to_owned() };
        progress = progress.max(reader.read(&event, &mut pieces).unwrap());
    }
    assert!(progress >= Progress::Finished, "the recording has no end");
    reader.finish(&mut pieces);
    let (mut text, mut calls, mut usage) = (String::new(), Vec::new(), None);
    for piece in pieces {
        match piece {
            Piece::Text(said) => text.push_str(&said),
            Piece::Call(call) => calls.push(call),
            Piece::Usage(told) => assert!(usage.replace(told).is_none(), "usage is told once"),
        }
    }
    (text, calls, usage)
}

/// Lets a reader have a go at anything.
pub fn feed(wire: &impl Wire, value: &Value, junk: &str) {
    let mut reader = wire.reader();
    let mut pieces = Vec::new();
    for data in [value.to_string(), junk.to_owned(), value.to_string()] {
        let event = SseEvent { event: String::new(), data };
        let _ = reader.read(&event, &mut pieces);
    }
    reader.finish(&mut pieces);
    assert!(pieces.iter().all(|piece| !matches!(piece, Piece::Text(text) if text.is_empty())));
}

/// JSON made of the words that the providers use.
pub fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
        proptest::sample::select(vec![
            "message_start",
            "content_block_start",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "text_delta",
            "input_json_delta",
            "tool_use",
            "text",
            "STOP",
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 5, |inner| {
        let key = proptest::sample::select(vec![
            "choices",
            "delta",
            "content",
            "index",
            "usage",
            "prompt_tokens",
            "error",
            "message",
            "finish_reason",
            "tool_calls",
            "function",
            "name",
            "arguments",
            "type",
            "content_block",
            "partial_json",
            "text",
            "id",
            "stop_reason",
            "input_tokens",
            "candidates",
            "parts",
            "functionCall",
            "finishReason",
            "usageMetadata",
            "promptTokenCount",
            "promptFeedback",
        ]);
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((key, inner), 0..5).prop_map(|fields| {
                Value::Object(fields.into_iter().map(|(key, v)| (key.to_owned(), v)).collect())
            }),
        ]
    })
}
