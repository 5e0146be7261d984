//! The wire of Google's Gemini API: `models/{model}:streamGenerateContent?alt=sse`.
//!
//! Source: ai.google.dev/api/generate-content. Without `alt=sse` the answer would be one JSON array.
//! There is no end mark: the stream ends after the chunk with a `finishReason`. Usage counts are
//! cumulative and come with every chunk.

use serde_json::{Value, json};

use crate::{
    llm::{
        codec::{MAX_CALLS, OPENING, alternating, chunk, rounded},
        model::{Ask, Piece, TokenUsage, ToolCall, Turn},
        sse::SseEvent,
        streaming::{Progress, Reader, Trouble, Wire},
    },
    net::http::ServerError,
};

/// What of the settings goes into each request.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameters {
    pub model: String,
    pub temperature: Option<f32>,
    pub max_tokens: u32,
}

impl Wire for Parameters {
    type Reader = Chunks;

    fn provider(&self) -> &'static str {
        "google"
    }

    fn model(&self) -> &str {
        &self.model
    }

    fn path(&self) -> (Vec<String>, Option<&'static str>) {
        let model = self.model.strip_prefix("models/").unwrap_or(&self.model);
        (vec!["models".into(), format!("{model}:streamGenerateContent")], Some("alt=sse"))
    }

    fn body(&self, ask: &Ask) -> Value {
        let system: Vec<Value> = ask.system().flat_map(said).collect();
        let mut contents = alternating(ask.spoken().map(parts));
        if contents.is_empty() {
            contents.push(("user", said(OPENING)));
        }
        let mut generation = json!({"maxOutputTokens": self.max_tokens});
        if let Some(temperature) = self.temperature {
            generation["temperature"] = rounded(temperature);
        }
        // Flash 2.5 thinks for seconds unless told not to; the other models take no zero.
        if self.model.contains("gemini-2.5-flash") {
            generation["thinkingConfig"] = json!({"thinkingBudget": 0});
        }
        let mut body = json!({
            "contents": contents
                .into_iter()
                .map(|(role, parts)| json!({"role": role, "parts": parts}))
                .collect::<Vec<_>>(),
            "generationConfig": generation,
        });
        if !system.is_empty() {
            body["systemInstruction"] = json!({"parts": system});
        }
        if !ask.tools.is_empty() {
            let tool = |tool: &crate::llm::model::ToolSpec| {
                json!({
                    "name": tool.name, "description": tool.description,
                    "parametersJsonSchema": tool.parameters,
                })
            };
            let declarations: Vec<Value> = ask.tools.iter().map(tool).collect();
            body["tools"] = json!([{"functionDeclarations": declarations}]);
            if ask.must_answer {
                body["toolConfig"] = json!({"functionCallingConfig": {"mode": "NONE"}});
            }
        }
        body
    }

    fn reader(&self) -> Chunks {
        Chunks::default()
    }
}

fn said(text: &str) -> Vec<Value> {
    if text.trim().is_empty() { vec![] } else { vec![json!({"text": text})] }
}

fn parts(turn: &Turn) -> (&'static str, Vec<Value>) {
    match turn {
        Turn::System(text) | Turn::User(text) => ("user", said(text)),
        Turn::Assistant { text, calls } => {
            let mut parts = said(text);
            parts.extend(calls.iter().map(|call| {
                let mut part = json!({"functionCall": {"name": call.name, "args": call.object()}});
                // A thought is only valid with the signature it came with.
                if let Some(signature) = &call.signature {
                    part["thoughtSignature"] = signature.as_str().into();
                }
                part
            }));
            ("model", parts)
        }
        Turn::Results(results) => (
            "user",
            results
                .iter()
                .map(|result| {
                    let key = if result.is_error { "error" } else { "output" };
                    json!({"functionResponse": {
                        "name": result.name, "response": {key: result.text},
                    }})
                })
                .collect(),
        ),
    }
}

/// Reads the chunks of one answer; what is missing or of another type counts as not there.
#[derive(Debug, Default)]
pub struct Chunks {
    calls: Vec<ToolCall>,
    usage: Option<TokenUsage>,
}

impl Reader for Chunks {
    fn read(&mut self, event: &SseEvent, pieces: &mut Vec<Piece>) -> Result<Progress, Trouble> {
        let chunk = chunk(event)?;
        let text = |pointer: &str| chunk.pointer(pointer).and_then(Value::as_str).unwrap_or("");
        self.usage = chunk.get("usageMetadata").and_then(read_usage).or(self.usage);
        let blocked = text("/promptFeedback/blockReason");
        if !blocked.is_empty() {
            return Err(Trouble::Server(ServerError {
                message: format!("the prompt was refused: {blocked}"),
                kinds: ["INVALID_ARGUMENT".into(), String::new(), String::new()],
            }));
        }
        let parts = chunk.pointer("/candidates/0/content/parts").and_then(Value::as_array);
        for part in parts.into_iter().flatten() {
            if part.get("thought").and_then(Value::as_bool) == Some(true) {
                continue;
            }
            match part.get("text").and_then(Value::as_str) {
                Some(text) if !text.is_empty() => pieces.push(Piece::Text(text.to_owned())),
                _ => self.call(part),
            }
        }
        let finished = !text("/candidates/0/finishReason").is_empty();
        Ok(if finished { Progress::Finished } else { Progress::More })
    }

    fn finish(&mut self, pieces: &mut Vec<Piece>) {
        pieces.extend(self.calls.drain(..).map(Piece::Call));
        pieces.extend(self.usage.take().map(Piece::Usage));
    }
}

impl Chunks {
    /// Calls come whole; ids are given only by some models.
    fn call(&mut self, part: &Value) {
        let text = |pointer: &str| part.pointer(pointer).and_then(Value::as_str);
        let Some(name) = text("/functionCall/name") else { return };
        if self.calls.len() >= MAX_CALLS {
            return;
        }
        let id = text("/functionCall/id")
            .map_or_else(|| format!("call-{}", self.calls.len()), str::to_owned);
        let arguments = part.pointer("/functionCall/args").filter(|args| args.is_object());
        self.calls.push(ToolCall {
            id,
            name: name.to_owned(),
            arguments: arguments.map_or_else(|| "{}".to_owned(), Value::to_string),
            signature: text("/thoughtSignature").map(str::to_owned),
        });
    }
}

fn read_usage(usage: &Value) -> Option<TokenUsage> {
    let count = |key: &str| usage.get(key).and_then(Value::as_u64);
    let input = count("promptTokenCount")?;
    let said = count("candidatesTokenCount").unwrap_or(0);
    Some(TokenUsage {
        input,
        cached: count("cachedContentTokenCount").unwrap_or(0),
        // Thoughts are paid for like words.
        output: said.saturating_add(count("thoughtsTokenCount").unwrap_or(0)),
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
        Parameters { model: "gemini-2.5-flash".into(), temperature: None, max_tokens: 256 }
    }

    #[test]
    fn a_request_has_the_system_prompt_apart_and_roles_in_turns() {
        let ask = Ask::new(&[
            message(Role::System, "Be brief."),
            message(Role::User, "Hi"),
            message(Role::Assistant, "Yes?"),
            message(Role::User, "One"),
            message(Role::User, "two"),
        ]);
        assert_eq!(
            parameters().body(&ask),
            json!({
                "systemInstruction": {"parts": [{"text": "Be brief."}]},
                "generationConfig": {
                    "maxOutputTokens": 256, "thinkingConfig": {"thinkingBudget": 0},
                },
                "contents": [
                    {"role": "user", "parts": [{"text": "Hi"}]},
                    {"role": "model", "parts": [{"text": "Yes?"}]},
                    {"role": "user", "parts": [{"text": "One"}, {"text": "two"}]},
                ],
            })
        );
        let (path, query) = parameters().path();
        assert_eq!(path, ["models", "gemini-2.5-flash:streamGenerateContent"]);
        assert_eq!(query, Some("alt=sse"));
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
        assert_eq!(body["toolConfig"]["functionCallingConfig"]["mode"], "NONE");
        assert!(body.get("tools").is_some());
    }

    #[test]
    fn a_recorded_stream_is_read_without_its_thoughts() {
        let stream = include_str!("../../../fixtures/providers/gemini-stream.jsonl");
        let (text, calls, usage) = testing::play(&parameters(), stream);
        assert_eq!(text, "Let me look.");
        let brief: Vec<_> =
            calls.iter().map(|it| (it.id.as_str(), it.name.as_str(), it.object())).collect();
        assert_eq!(
            brief,
            [("call-0", "weather", json!({"city": "Ulm"})), ("f-7", "time", json!({}))]
        );
        assert_eq!(calls[0].signature.as_deref(), Some("CpA="));
        assert_eq!(usage, Some(TokenUsage { input: 40, cached: 32, output: 33 }));
    }

    #[test]
    fn calls_go_back_with_their_signature_and_results_with_their_name() {
        let mut ask = Ask::default();
        let signature = Some("CpA=".into());
        let call = ToolCall { signature, ..testing::weather_call("call-0", "{}") };
        ask.turns.push(Turn::Assistant { text: String::new(), calls: vec![call] });
        let result = testing::weather_result("call-0", "rain", false);
        ask.turns.push(Turn::Results(vec![result]));
        ask.tools = [testing::weather_tool()].into();
        let body = parameters().body(&ask);
        assert_eq!(body["contents"][0]["parts"][0]["thoughtSignature"], "CpA=");
        let response = &body["contents"][1]["parts"][0]["functionResponse"];
        assert_eq!(*response, json!({"name": "weather", "response": {"output": "rain"}}));
        assert_eq!(body["tools"][0]["functionDeclarations"][0]["name"], "weather");
    }

    #[test]
    fn a_refused_prompt_is_an_error() {
        let data = r#"{"promptFeedback":{"blockReason":"SAFETY"}}"#;
        let event = SseEvent { data: data.into(), ..SseEvent::default() };
        let told = Chunks::default().read(&event, &mut Vec::new());
        assert!(matches!(told, Err(Trouble::Server(error)) if error.is_final()));
    }

    proptest! {
        #[test]
        fn no_json_can_hurt(value in testing::any_json(), junk in "\\PC{0,60}") {
            testing::feed(&parameters(), &value, &junk);
        }
    }
}
