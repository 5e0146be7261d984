//! The driver against the double, over loopback; what all models share is tested with the chain.

use std::time::Duration;

use serde_json::json;
use tokio::sync::mpsc;

use super::*;
use crate::{
    doubles::{Doubles, Script, faults::Faulty, llm::LlmScript, serve},
    llm::{
        LlmError,
        model::{Ask, Model, Patience, Piece, TokenUsage, Turn},
    },
};

async fn open(script: LlmScript) -> (Doubles, Anthropic) {
    let doubles = serve(Script { anthropic: script, ..Script::default() }).await.unwrap();
    let mut config = AnthropicConfig::new("key".into(), "model");
    config.base_url = doubles.base_url();
    (doubles, Anthropic::new(config).unwrap())
}

async fn ask(model: &Anthropic) -> (Result<(), LlmError>, Vec<Piece>) {
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

#[tokio::test]
async fn text_streams_and_usage_comes_last() {
    let (_doubles, model) = open(LlmScript::new().answer("Sure. I can.")).await;
    let (result, mut pieces) = ask(&model).await;
    assert_eq!(result, Ok(()));
    let Some(Piece::Usage(TokenUsage { output: 3, .. })) = pieces.pop() else {
        panic!("{pieces:?}")
    };
    let said = ["Sure.", " I", " can."].map(|text| Piece::Text(text.into()));
    assert_eq!(pieces, said);
}

#[tokio::test]
async fn calls_come_whole() {
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

#[tokio::test]
async fn an_overload_is_asked_again_and_a_wrong_key_is_not() {
    let script = LlmScript::new().refuse(529).refuse(401).answer("Yes.");
    let (_doubles, model) = open(script).await;
    assert_eq!(ask(&model).await.0, Err(LlmError::Unauthorized { status: 401 }));
    assert_eq!(ask(&model).await.1[0], Piece::Text("Yes.".into()));
}

#[tokio::test]
async fn a_failure_within_the_stream_is_told() {
    let (_doubles, model) = open(LlmScript::new().answer("One two three").fail_after(1)).await;
    let (result, pieces) = ask(&model).await;
    assert!(matches!(result, Err(LlmError::Interrupted(reason)) if reason.contains("verloaded")));
    assert_eq!(pieces, [Piece::Text("One".into())]);
}
