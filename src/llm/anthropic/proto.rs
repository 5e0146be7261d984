//! The wire of Anthropic's Messages API, streamed.
//!
//! Source: docs.anthropic.com/en/api/messages, /messages-streaming and
//! /docs/build-with-claude/prompt-caching. Events of unknown types are passed over, as the
//! documentation asks. Token counts in `message_delta` are cumulative: the last one counts.

use serde_json::{Value, json};

use crate::{
    llm::{
        codec::{MAX_CALLS, OPENING, alternating, append_arguments, rounded},
        model::{Ask, Piece, TokenUsage, ToolCall, Turn},
        sse::SseEvent,
        streaming::{Progress, Reader, Trouble, Wire},
    },
    net::http::ServerError,
};

/// The version of the API that this speaks.
pub const VERSION: &str = "2023-06-01";

/// What of the settings goes into each request.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameters {
    pub model: String,
    /// 0..1 at Anthropic; higher is cut to 1.
    pub temperature: Option<f32>,
    pub max_tokens: u32,
}

impl Wire for Parameters {
    type Reader = Events;

    fn provider(&self) -> &'static str {
        "anthropic"
    }

    fn model(&self) -> &str {
        &self.model
    }

    fn path(&self) -> (Vec<String>, Option<&'static str>) {
        (vec!["messages".into()], None)
    }

    /// The prompt is cached up to two places: the end of the system prompt (with the tools, which
    /// come before it), and the end of the conversation so far, which the next turn begins with.
    fn body(&self, ask: &Ask) -> Value {
        let system: Vec<&str> = ask.system().filter(|text| !text.is_empty()).collect();
        let system = system.join("\n\n");
        let mut messages = alternating(ask.spoken().map(blocks));
        // A conversation must begin with the user, also one that the agent's greeting begins.
        if messages.first().is_none_or(|(role, _)| *role == "assistant") {
            messages.insert(0, ("user", vec![text_block(OPENING)]));
        }
        if let Some(last) = messages.last_mut().and_then(|(_, blocks)| blocks.last_mut()) {
            last["cache_control"] = cached();
        }
        let mut body = json!({
            "model": self.model,
            "max_tokens": self.max_tokens,
            "stream": true,
            "messages": messages
                .into_iter()
                .map(|(role, content)| json!({"role": role, "content": content}))
                .collect::<Vec<_>>(),
        });
        if !system.is_empty() {
            let mut block = text_block(&system);
            block["cache_control"] = cached();
            body["system"] = json!([block]);
        }
        if let Some(temperature) = self.temperature {
            body["temperature"] = rounded(temperature.min(1.0));
        }
        if !ask.tools.is_empty() {
            let tool = |tool: &crate::llm::model::ToolSpec| {
                json!({
                    "name": tool.name, "description": tool.description,
                    "input_schema": tool.parameters,
                })
            };
            // Turns with calls are refused without the tools that they are of.
            body["tools"] = ask.tools.iter().map(tool).collect();
            if ask.must_answer {
                body["tool_choice"] = json!({"type": "none"});
            }
        }
        body
    }

    fn reader(&self) -> Events {
        Events::default()
    }
}

fn cached() -> Value {
    json!({"type": "ephemeral"})
}

fn text_block(text: &str) -> Value {
    json!({"type": "text", "text": text})
}

/// White space alone is refused, and so is white space at the end of an assistant's last text.
fn said(text: &str) -> Vec<Value> {
    let text = text.trim();
    if text.is_empty() { vec![] } else { vec![text_block(text)] }
}

fn blocks(turn: &Turn) -> (&'static str, Vec<Value>) {
    match turn {
        Turn::System(text) | Turn::User(text) => ("user", said(text)),
        Turn::Assistant { text, calls } => {
            let mut blocks = said(text);
            blocks.extend(calls.iter().map(|call| {
                json!({
                    "type": "tool_use", "id": call.id, "name": call.name, "input": call.object(),
                })
            }));
            ("assistant", blocks)
        }
        Turn::Results(results) => (
            "user",
            results
                .iter()
                .map(|result| {
                    json!({
                        "type": "tool_result", "tool_use_id": result.id, "content": result.text,
                        "is_error": result.is_error,
                    })
                })
                .collect(),
        ),
    }
}

/// Reads the events of one answer; what is missing or of another type counts as not there.
#[derive(Debug, Default)]
pub struct Events {
    /// Calls by the index of their content block.
    calls: Vec<(u64, ToolCall)>,
    usage: TokenUsage,
    has_usage: bool,
}

impl Reader for Events {
    fn read(&mut self, event: &SseEvent, pieces: &mut Vec<Piece>) -> Result<Progress, Trouble> {
        let message: Value = serde_json::from_str(&event.data).map_err(|_| Trouble::Unreadable)?;
        let text = |pointer: &str| message.pointer(pointer).and_then(Value::as_str).unwrap_or("");
        let index = message.get("index").and_then(Value::as_u64).unwrap_or(0);
        match text("/type") {
            "message_start" => self.count(message.pointer("/message/usage")),
            "content_block_start" => match text("/content_block/type") {
                "text" => say(text("/content_block/text"), pieces),
                "tool_use" if self.calls.len() < MAX_CALLS => {
                    let call = ToolCall {
                        id: text("/content_block/id").to_owned(),
                        name: text("/content_block/name").to_owned(),
                        arguments: String::new(),
                        signature: None,
                    };
                    self.calls.push((index, call));
                }
                _ => {}
            },
            "content_block_delta" => match text("/delta/type") {
                "text_delta" => say(text("/delta/text"), pieces),
                "input_json_delta" => {
                    let part = text("/delta/partial_json");
                    let call = self.calls.iter_mut().find(|(of, _)| *of == index);
                    if let Some((_, call)) = call {
                        append_arguments(call, part);
                    }
                }
                // Thoughts and their signatures are not spoken.
                _ => {}
            },
            "message_delta" => {
                self.count(message.get("usage"));
                if !text("/delta/stop_reason").is_empty() {
                    return Ok(Progress::Finished);
                }
            }
            "message_stop" => return Ok(Progress::Done),
            "error" => {
                let error = message.get("error").unwrap_or(&Value::Null);
                return Err(Trouble::Server(ServerError::from_value(error)));
            }
            _ => {}
        }
        Ok(Progress::More)
    }

    fn finish(&mut self, pieces: &mut Vec<Piece>) {
        pieces.extend(self.calls.drain(..).map(|(_, call)| Piece::Call(call)));
        if std::mem::take(&mut self.has_usage) {
            pieces.push(Piece::Usage(self.usage));
        }
    }
}

impl Events {
    /// What a usage object leaves out stays as it was told before. Anthropic counts the prompt in
    /// three parts: read from the cache, written to it, and the rest.
    fn count(&mut self, usage: Option<&Value>) {
        let Some(usage) = usage else { return };
        let count = |key: &str| usage.get(key).and_then(Value::as_u64);
        self.has_usage = true;
        if let Some(input) = count("input_tokens") {
            let read = count("cache_read_input_tokens").unwrap_or(0);
            let written = count("cache_creation_input_tokens").unwrap_or(0);
            self.usage.input = input.saturating_add(read).saturating_add(written);
            self.usage.cached = read;
        }
        if let Some(output) = count("output_tokens") {
            self.usage.output = output;
        }
    }
}

fn say(text: &str, pieces: &mut Vec<Piece>) {
    if !text.is_empty() {
        pieces.push(Piece::Text(text.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::llm::{
        Role,
        testing::{self, message},
    };

    fn parameters() -> Parameters {
        Parameters { model: "claude".into(), temperature: Some(1.5), max_tokens: 1024 }
    }

    #[test]
    fn a_model_that_must_answer_is_told_to_call_nothing() {
        let weather = crate::llm::model::ToolSpec {
            name: "weather".into(),
            description: String::new(),
            parameters: json!({"type": "object"}),
        };
        let ask = Ask { tools: [weather].into(), must_answer: true, ..Ask::default() };
        let body = parameters().body(&ask);
        assert_eq!(body["tool_choice"], json!({"type": "none"}));
        assert!(body.get("tools").is_some());
    }

    #[test]
    fn a_request_caches_the_system_prompt_and_the_conversation() {
        let ask = Ask::new(&[
            message(Role::System, "Be brief."),
            message(Role::Assistant, "Hello! "),
            message(Role::User, "Hi"),
            message(Role::Assistant, " "),
            message(Role::User, "Still there?"),
        ]);
        assert_eq!(
            parameters().body(&ask),
            json!({
                "model": "claude", "max_tokens": 1024, "stream": true, "temperature": 1.0,
                "system": [{
                    "type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"},
                }],
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": OPENING}]},
                    {"role": "assistant", "content": [{"type": "text", "text": "Hello!"}]},
                    {"role": "user", "content": [
                        {"type": "text", "text": "Hi"},
                        {
                            "type": "text", "text": "Still there?",
                            "cache_control": {"type": "ephemeral"},
                        },
                    ]},
                ],
            })
        );
    }

    #[test]
    fn calls_and_results_go_back_as_they_came() {
        let mut ask = Ask::new(&[message(Role::User, "Weather?")]);
        let call = testing::weather_call("t1", "{\"city\":");
        ask.turns.push(Turn::Assistant { text: "Well.".into(), calls: vec![call] });
        let result = testing::weather_result("t1", "the arguments are no JSON", true);
        ask.turns.push(Turn::Results(vec![result]));
        let body = parameters().body(&ask);
        assert_eq!(body["messages"][1]["content"][1]["input"], json!({}));
        assert_eq!(body["messages"][2]["content"][0]["tool_use_id"], "t1");
        assert_eq!(body["messages"][2]["content"][0]["is_error"], true);
    }

    #[test]
    fn a_recorded_stream_is_read_with_its_last_usage() {
        let stream = include_str!("../../../fixtures/providers/anthropic-stream.jsonl");
        let (text, calls, usage) = testing::play(&parameters(), stream);
        assert_eq!(text, "Let me look.");
        let brief: Vec<_> = calls.iter().map(|it| (it.name.as_str(), it.object())).collect();
        assert_eq!(brief, [("weather", json!({"city": "Ulm"})), ("time", json!({}))]);
        assert_eq!(usage, Some(TokenUsage { input: 1_832, cached: 1_800, output: 89 }));
    }

    #[test]
    fn an_overload_within_the_stream_is_no_fault_of_ours() {
        let data = r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#;
        let event = SseEvent { event: "error".into(), data: data.into() };
        let told = Events::default().read(&event, &mut Vec::new());
        let Err(Trouble::Server(error)) = told else { panic!("{told:?}") };
        assert_eq!(error.message, "Overloaded");
        assert!(!error.is_final());
    }

    proptest! {
        #[test]
        fn no_json_can_hurt(value in testing::any_json(), junk in "\\PC{0,60}") {
            testing::feed(&parameters(), &value, &junk);
        }
    }
}
