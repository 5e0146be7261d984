//! The wire of OpenAI chat completions, as OpenAI and the many servers that imitate it speak it.
//!
//! Source: platform.openai.com/docs/api-reference/chat and /chat-streaming. Chunks are read field by
//! field from JSON rather than into a fixed type: `choices` is null in the usage chunk of some
//! servers, ids and dates are missing from others, and none of that concerns us.

use serde_json::{Value, json};

pub use crate::llm::codec::rounded;
use crate::llm::{
    codec::{MAX_CALLS, append_arguments, chunk},
    model::{Ask, Piece, TokenUsage, ToolCall, Turn},
    sse::SseEvent,
    streaming::{Progress, Reader, Trouble, Wire},
};

/// What of the settings goes into each request.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameters {
    pub model: String,
    pub temperature: Option<f32>,
    pub max_tokens: Option<u32>,
    /// OpenAI itself has renamed `max_tokens` to `max_completion_tokens`, and newer models refuse
    /// the old name; most other servers know only the old one.
    pub new_token_limit: bool,
}

impl Wire for Parameters {
    type Reader = Chunks;

    fn provider(&self) -> &'static str {
        "openai"
    }

    fn model(&self) -> &str {
        &self.model
    }

    fn path(&self) -> (Vec<String>, Option<&'static str>) {
        (vec!["chat".into(), "completions".into()], None)
    }

    /// A request for one streamed answer with its usage. Empty messages are left out: some servers
    /// refuse them, and they say nothing.
    fn body(&self, ask: &Ask) -> Value {
        let mut body = json!({
            "model": self.model,
            "messages": ask.turns.iter().flat_map(messages).collect::<Vec<_>>(),
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        if let Some(temperature) = self.temperature {
            body["temperature"] = rounded(temperature);
        }
        if let Some(limit) = self.max_tokens {
            let name = if self.new_token_limit { "max_completion_tokens" } else { "max_tokens" };
            body[name] = limit.into();
        }
        // Not every server that speaks this API knows `tool_choice`.
        if !(ask.tools.is_empty() || ask.must_answer) {
            let function = |tool: &crate::llm::model::ToolSpec| {
                json!({"type": "function", "function": {
                    "name": tool.name, "description": tool.description,
                    "parameters": tool.parameters,
                }})
            };
            body["tools"] = ask.tools.iter().map(function).collect();
        }
        body
    }

    fn reader(&self) -> Chunks {
        Chunks::default()
    }
}

fn messages(turn: &Turn) -> Vec<Value> {
    let said = |role: &str, text: &str| {
        if text.is_empty() { vec![] } else { vec![json!({"role": role, "content": text})] }
    };
    match turn {
        Turn::System(text) => said("system", text),
        Turn::User(text) => said("user", text),
        Turn::Assistant { text, calls } if calls.is_empty() => said("assistant", text),
        Turn::Assistant { text, calls } => {
            let calls = calls.iter().map(|call| {
                json!({"id": call.id, "type": "function", "function": {
                    "name": call.name, "arguments": call.object().to_string(),
                }})
            });
            let content = if text.is_empty() { Value::Null } else { text.as_str().into() };
            vec![json!({
                "role": "assistant", "content": content, "tool_calls": calls.collect::<Vec<_>>(),
            })]
        }
        Turn::Results(results) => results
            .iter()
            .map(|it| json!({"role": "tool", "tool_call_id": it.id, "content": it.text}))
            .collect(),
    }
}

/// Reads the chunks of one answer; what is missing or of another type counts as not there.
#[derive(Debug, Default)]
pub struct Chunks {
    calls: Vec<(u64, ToolCall)>,
    usage: Option<TokenUsage>,
}

impl Reader for Chunks {
    fn read(&mut self, event: &SseEvent, pieces: &mut Vec<Piece>) -> Result<Progress, Trouble> {
        if event.data.trim() == "[DONE]" {
            return Ok(Progress::Done);
        }
        let chunk = chunk(event)?;
        self.usage = chunk.get("usage").and_then(read_usage).or(self.usage);
        let choices = chunk.get("choices").and_then(Value::as_array);
        let Some(choice) = choices.and_then(|all| all.iter().find(|choice| is_first(choice)))
        else {
            return Ok(Progress::More);
        };
        if let Some(delta) = choice.get("delta") {
            // A refusal is the answer as well: unspoken it would be silence.
            let text = |key: &str| delta.get(key).and_then(Value::as_str).unwrap_or_default();
            let said = [text("content"), text("refusal")].concat();
            if !said.is_empty() {
                pieces.push(Piece::Text(said));
            }
            for call in delta.get("tool_calls").and_then(Value::as_array).into_iter().flatten() {
                self.call(call);
            }
        }
        let reason = choice.get("finish_reason").and_then(Value::as_str).unwrap_or_default();
        Ok(if reason.is_empty() { Progress::More } else { Progress::Finished })
    }

    fn finish(&mut self, pieces: &mut Vec<Piece>) {
        pieces.extend(self.calls.drain(..).map(|(_, call)| Piece::Call(call)));
        pieces.extend(self.usage.take().map(Piece::Usage));
    }
}

impl Chunks {
    /// A call comes in pieces that share an index; its first piece has id and name.
    fn call(&mut self, piece: &Value) {
        let text = |pointer: &str| piece.pointer(pointer).and_then(Value::as_str).unwrap_or("");
        let (id, name) = (text("/id"), text("/function/name"));
        let last = self.calls.last().map(|(index, _)| *index);
        let index = match piece.get("index").and_then(Value::as_u64) {
            Some(index) => index,
            // Servers without an index send whole calls.
            None if !name.is_empty() => last.map_or(0, |index| index + 1),
            None => last.unwrap_or(0),
        };
        let at = match self.calls.iter().position(|(of, _)| *of == index) {
            Some(at) => at,
            None if self.calls.len() < MAX_CALLS => {
                let id = format!("call-{index}");
                let (name, arguments) = (String::new(), String::new());
                self.calls.push((index, ToolCall { id, name, arguments, signature: None }));
                self.calls.len() - 1
            }
            None => return,
        };
        let call = &mut self.calls[at].1;
        if !id.is_empty() {
            id.clone_into(&mut call.id);
        }
        if call.name.is_empty() {
            name.clone_into(&mut call.name);
        }
        append_arguments(call, text("/function/arguments"));
    }
}

fn is_first(choice: &Value) -> bool {
    choice.get("index").and_then(Value::as_u64).unwrap_or(0) == 0
}

fn read_usage(usage: &Value) -> Option<TokenUsage> {
    let count = |value: Option<&Value>| value.and_then(Value::as_u64);
    let input = count(usage.get("prompt_tokens"));
    let output = count(usage.get("completion_tokens"));
    if input.is_none() && output.is_none() {
        return None;
    }
    Some(TokenUsage {
        input: input.unwrap_or(0),
        cached: count(usage.pointer("/prompt_tokens_details/cached_tokens")).unwrap_or(0),
        output: output.unwrap_or(0),
    })
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
        Parameters {
            model: "gpt-4o-mini".into(),
            temperature: Some(0.5),
            max_tokens: Some(1024),
            new_token_limit: false,
        }
    }

    #[test]
    fn a_request_carries_the_whole_conversation_and_asks_for_usage() {
        let ask = Ask::new(&[
            message(Role::System, "Be brief."),
            message(Role::User, "Hi"),
            message(Role::Assistant, ""),
            message(Role::User, "Hello?"),
        ]);
        assert_eq!(
            parameters().body(&ask),
            json!({
                "model": "gpt-4o-mini", "stream": true, "stream_options": {"include_usage": true},
                "temperature": 0.5, "max_tokens": 1024,
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "Hi"},
                    {"role": "user", "content": "Hello?"},
                ],
            })
        );
        let new = Parameters { new_token_limit: true, temperature: None, ..parameters() };
        let body = new.body(&Ask::default());
        assert_eq!(body["max_completion_tokens"], 1024);
        assert_eq!(body.get("max_tokens").or(body.get("temperature")), None);
    }

    #[test]
    fn calls_and_results_go_back_as_they_came() {
        let mut ask = Ask::default();
        let call = testing::weather_call("c1", "{\"city\": \"Ulm\"}");
        ask.turns.push(Turn::Assistant { text: String::new(), calls: vec![call] });
        let result = testing::weather_result("c1", "rain", false);
        ask.turns.push(Turn::Results(vec![result]));
        ask.tools = [testing::weather_tool()].into();
        let body = parameters().body(&ask);
        assert_eq!(
            body["messages"][0]["tool_calls"][0]["function"]["arguments"],
            "{\"city\":\"Ulm\"}"
        );
        assert_eq!(body["messages"][1]["tool_call_id"], "c1");
        assert_eq!(body["tools"][0]["function"]["name"], "weather");
    }

    #[test]
    fn recorded_streams_are_read() {
        for (name, stream) in [
            ("openai", include_str!("../../../fixtures/providers/openai-stream.jsonl")),
            ("compatible", include_str!("../../../fixtures/providers/openai-compatible.jsonl")),
        ] {
            let (text, calls, usage) = testing::play(&parameters(), stream);
            assert_eq!(text, "Sure. I can help.", "{name}");
            assert_eq!(usage, Some(TokenUsage { input: 21, cached: 16, output: 6 }), "{name}");
            assert!(calls.is_empty());
        }
    }

    #[test]
    fn calls_are_put_together_from_their_pieces() {
        let stream = include_str!("../../../fixtures/providers/openai-tools.jsonl");
        let (_, calls, _) = testing::play(&parameters(), stream);
        let brief: Vec<_> =
            calls.iter().map(|it| (it.id.as_str(), it.name.as_str(), it.object())).collect();
        assert_eq!(
            brief,
            [
                ("call_a", "weather", json!({"city": "Ulm"})),
                ("call_b", "weather", json!({"city": "Bonn"})),
            ]
        );
    }

    #[test]
    fn an_error_within_the_stream_is_seen() {
        let read = |data: Value| {
            let event = SseEvent { data: data.to_string(), ..SseEvent::default() };
            Chunks::default().read(&event, &mut Vec::new())
        };
        let told = read(json!({"error": {"message": "overloaded", "type": "server_error"}}));
        let Err(Trouble::Server(error)) = told else { panic!("{told:?}") };
        assert_eq!(error.message, "overloaded");
        assert!(!error.is_final());
        assert!(matches!(read(json!({"error": "no"})), Err(Trouble::Server(_))));
        assert_eq!(read(json!({"error": null})), Ok(Progress::More));
    }

    proptest! {
        #[test]
        fn no_json_can_hurt(value in testing::any_json(), junk in "\\PC{0,60}") {
            testing::feed(&parameters(), &value, &junk);
        }
    }
}
