//! What the tests of the models share: of their codecs, and of their drivers against the doubles.

use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{
    LlmError, Message, Role,
    model::{Ask, Model, Patience, Piece, TokenUsage, ToolCall, ToolResult, ToolSpec, Turn},
    sse::SseEvent,
    streaming::{Progress, Reader, Wire},
};
use crate::doubles::{Doubles, faults::Faulty, llm::LlmScript};

pub fn message(role: Role, text: &str) -> Message {
    Message { role, text: text.into() }
}

/// A tool, a call of it and what it gave, as an application puts them.
pub fn weather_tool() -> ToolSpec {
    ToolSpec {
        name: "weather".into(),
        description: "Tells it".into(),
        parameters: json!({"type": "object"}),
    }
}

pub fn weather_call(id: &str, arguments: &str) -> ToolCall {
    ToolCall { id: id.into(), name: "weather".into(), arguments: arguments.into(), signature: None }
}

pub fn weather_result(id: &str, text: &str, is_error: bool) -> ToolResult {
    ToolResult { id: id.into(), name: "weather".into(), text: text.into(), is_error }
}

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

/// One question over loopback: how it ended, and what was streamed.
pub async fn ask(model: &impl Model) -> (Result<(), LlmError>, Vec<Piece>) {
    let (sender, mut pieces) = mpsc::channel(256);
    let ask = Ask { turns: vec![Turn::User("Hi".into())], ..Ask::default() };
    let streaming = model.stream(&ask, Patience::OWN, sender);
    let result = tokio::time::timeout(Duration::from_secs(10), streaming).await.unwrap();
    let mut all = Vec::new();
    while let Ok(piece) = pieces.try_recv() {
        all.push(piece);
    }
    (result, all)
}

pub async fn check_that_text_streams_and_usage_comes_last<M: Model>(
    open: impl AsyncFn(LlmScript) -> (Doubles, M),
) {
    let (_doubles, model) = open(LlmScript::new().answer("Sure. I can.")).await;
    let (result, mut pieces) = ask(&model).await;
    assert_eq!(result, Ok(()));
    let Some(Piece::Usage(TokenUsage { output: 3, .. })) = pieces.pop() else {
        panic!("{pieces:?}")
    };
    let said = ["Sure.", " I", " can."].map(|text| Piece::Text(text.into()));
    assert_eq!(pieces, said);
}

pub async fn check_that_calls_come_whole<M: Model>(open: impl AsyncFn(LlmScript) -> (Doubles, M)) {
    let script = LlmScript::new().calls([("weather", json!({"city": "Ulm"})), ("time", json!({}))]);
    let (_doubles, model) = open(script).await;
    let (result, pieces) = ask(&model).await;
    assert_eq!(result, Ok(()));
    let calls: Vec<_> = pieces
        .iter()
        .filter_map(|piece| match piece {
            Piece::Call(call) => Some((call.name.as_str(), call.object())),
            _ => None,
        })
        .collect();
    assert_eq!(calls, [("weather", json!({"city": "Ulm"})), ("time", json!({}))]);
}

/// `overload`: the status by which the provider says that it has too much to do.
pub async fn check_that_an_overload_is_asked_again_and_a_wrong_key_is_not<M: Model>(
    open: impl AsyncFn(LlmScript) -> (Doubles, M),
    overload: u16,
) {
    let script = LlmScript::new().refuse(overload).refuse(401).answer("Yes.");
    let (_doubles, model) = open(script).await;
    assert_eq!(ask(&model).await.0, Err(LlmError::Unauthorized { status: 401 }));
    assert_eq!(ask(&model).await.1[0], Piece::Text("Yes.".into()));
}

pub async fn check_that_a_failure_within_the_stream_is_told<M: Model>(
    open: impl AsyncFn(LlmScript) -> (Doubles, M),
) {
    let (_doubles, model) = open(LlmScript::new().answer("One two three").fail_after(1)).await;
    let (result, pieces) = ask(&model).await;
    assert!(matches!(result, Err(LlmError::Interrupted(reason)) if reason.contains("verloaded")));
    assert_eq!(pieces, [Piece::Text("One".into())]);
}
