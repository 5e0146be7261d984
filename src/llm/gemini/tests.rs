//! The driver against the double, over loopback; what all models share is tested with the chain.

use super::*;
use crate::{
    doubles::{Doubles, Script, llm::LlmScript, serve},
    llm::testing,
};

async fn open(script: LlmScript) -> (Doubles, Gemini) {
    let doubles = serve(Script { gemini: script, ..Script::default() }).await.unwrap();
    let mut config = GeminiConfig::new("key".into(), "model");
    config.base_url = doubles.base_url().replace("/v1", "/v1beta");
    (doubles, Gemini::new(config).unwrap())
}

#[tokio::test]
async fn text_streams_and_usage_comes_last() {
    testing::check_that_text_streams_and_usage_comes_last(open).await;
}

#[tokio::test]
async fn calls_come_whole() {
    testing::check_that_calls_come_whole(open).await;
}

#[tokio::test]
async fn an_overload_is_asked_again_and_a_wrong_key_is_not() {
    testing::check_that_an_overload_is_asked_again_and_a_wrong_key_is_not(open, 529).await;
}

#[tokio::test]
async fn a_failure_within_the_stream_is_told() {
    testing::check_that_a_failure_within_the_stream_is_told(open).await;
}
