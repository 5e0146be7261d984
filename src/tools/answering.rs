//! A chain of models with tools: asks, runs what is called for, asks again with the results.
//!
//! The session knows of none of this: it hears one answer. What was called and what came of it is
//! remembered here and put back into the conversation where it happened, so that later turns know.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Toolbox;
use crate::llm::{
    GenerateRequest, Llm, LlmError, LlmEvent,
    chain::{Chain, Told, tell_all},
    model::{Ask, Turn},
};

/// Rounds of calls in one answer; after them the model must answer with what it has.
const MAX_STEPS: usize = 3;
/// Rounds of calls that are remembered.
const MAX_REMEMBERED: usize = 32;
const QUEUE: usize = 64;
/// When nothing has been said and the tools take longer than this, the user hears that.
const PATIENCE: Duration = Duration::from_millis(700);

/// A round of calls and results, and the user's words that led to it.
#[derive(Debug, Clone, PartialEq)]
struct Round {
    after: String,
    turns: [Turn; 2],
}

/// A session's models with its tools.
#[derive(Debug)]
pub struct Handy {
    chain: Chain,
    tools: Toolbox,
    /// Said when tools take their time; empty: nothing.
    filler: String,
    rounds: Mutex<VecDeque<Round>>,
}

impl Handy {
    pub fn new(chain: Chain, tools: Toolbox, filler: impl Into<String>) -> Self {
        Self { chain, tools, filler: filler.into(), rounds: Mutex::default() }
    }

    async fn answer(
        &self,
        request: &GenerateRequest,
        out: &mpsc::Sender<Told>,
    ) -> Result<(), LlmError> {
        let plain = Ask::new(&request.messages);
        let mut ask =
            Ask { turns: woven(plain.turns, &self.rounds.lock()), tools: self.tools.specs() };
        let after = last_said(&ask.turns);
        let mut spoken = false;
        for step in 0..=MAX_STEPS {
            if step == MAX_STEPS {
                ask.tools = Arc::default();
            }
            let answer = self.chain.answer(&ask, out).await?;
            spoken |= !answer.text.trim().is_empty();
            if answer.calls.is_empty() {
                return Ok(());
            }
            if spoken && !answer.text.ends_with(char::is_whitespace) {
                let _ = out.send(Told::Text(" ".into())).await;
            }
            let results = {
                let calls = answer.calls.iter().map(|call| self.tools.run(call));
                let mut running = std::pin::pin!(join_all(calls));
                tokio::select! {
                    biased;
                    results = &mut running => results,
                    () = tokio::time::sleep(PATIENCE), if !spoken && !self.filler.is_empty() => {
                        let _ = out.send(Told::Text(format!("{} ", self.filler))).await;
                        spoken = true;
                        running.await
                    }
                }
            };
            let turns = [
                Turn::Assistant { text: answer.text, calls: answer.calls },
                Turn::Results(results),
            ];
            ask.turns.extend(turns.clone());
            let mut rounds = self.rounds.lock();
            if rounds.len() == MAX_REMEMBERED {
                rounds.pop_front();
            }
            rounds.push_back(Round { after: after.clone(), turns });
        }
        Ok(())
    }
}

fn last_said(turns: &[Turn]) -> String {
    let said = turns.iter().rev().find_map(|turn| match turn {
        Turn::User(text) => Some(text.clone()),
        _ => None,
    });
    said.unwrap_or_default()
}

/// Puts rounds back behind the words that led to them. The session may have joined further words to
/// a turn that was never answered.
fn woven(turns: Vec<Turn>, rounds: &VecDeque<Round>) -> Vec<Turn> {
    let mut out = Vec::with_capacity(turns.len() + rounds.len() * 2);
    let mut rounds = rounds.iter().peekable();
    for turn in turns {
        let said = match &turn {
            Turn::User(text) => Some(text.clone()),
            _ => None,
        };
        out.push(turn);
        let Some(said) = said else { continue };
        // Rounds whose turn has been dropped from the history are passed over by those after them.
        while let Some(at) = rounds.clone().position(|round| said.starts_with(&round.after)) {
            let Some(round) = rounds.by_ref().nth(at) else { break };
            out.extend(round.turns.clone());
        }
    }
    out
}

#[async_trait::async_trait]
impl Llm for Handy {
    fn provider(&self) -> &'static str {
        Llm::provider(&self.chain)
    }

    fn model(&self) -> &str {
        Llm::model(&self.chain)
    }

    fn name_of(&self, link: u8) -> (&str, &str) {
        self.chain.name_of(link)
    }

    async fn prewarm(&self) {
        self.chain.prewarm().await;
    }

    async fn generate(
        &self,
        request: GenerateRequest,
        events: mpsc::Sender<LlmEvent>,
        cancel: CancellationToken,
    ) {
        let (sender, told) = mpsc::channel(QUEUE);
        let answering = async {
            let answer = self.answer(&request, &sender).await;
            drop(sender);
            answer
        };
        // Dropping it frees the connection and ends the calls, but those that outlive it.
        let outcome = tell_all(answering, told, &events, &cancel).await;
        let Some(outcome) = outcome else { return };
        let last = outcome.map_or_else(LlmEvent::Error, |()| LlmEvent::End);
        let _ = events.send(last).await;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        doubles::{Doubles, Script, llm::LlmScript, log::What, serve},
        llm::{
            Message, Role,
            chain::Haste,
            model::{ToolCall, ToolResult, ToolSpec},
            openai::{OpenAi, OpenAiConfig},
        },
        tools::{Call, Tool, ToolError},
    };

    #[derive(Debug)]
    struct Weather(Duration);

    #[async_trait::async_trait]
    impl Call for Weather {
        async fn call(&self, arguments: &Value) -> Result<String, ToolError> {
            tokio::time::sleep(self.0).await;
            Ok(format!("rain in {}", arguments["city"].as_str().unwrap_or("?")))
        }
    }

    async fn open(llm: LlmScript, takes: Duration) -> (Doubles, Handy) {
        let doubles = serve(Script { llm, ..Script::default() }).await.unwrap();
        let config =
            OpenAiConfig { base_url: doubles.base_url(), ..OpenAiConfig::new("k".into(), "gpt") };
        let chain = Chain::new(vec![Arc::new(OpenAi::new(config).unwrap())], Haste::default());
        let tool = Tool {
            spec: ToolSpec {
                name: "weather".into(),
                description: "Tells it".into(),
                parameters: json!({"type": "object", "properties": {"city": {"type": "string"}}}),
            },
            run: Arc::new(Weather(takes)),
            timeout: Duration::from_secs(4),
            outlives_interruption: false,
        };
        let handy = Handy::new(chain.unwrap(), Toolbox::new(vec![tool]), "One moment.");
        (doubles, handy)
    }

    async fn ask(handy: &Handy, said: &[(Role, &str)]) -> (String, Option<LlmEvent>) {
        let messages =
            said.iter().map(|(role, text)| Message { role: *role, text: (*text).into() });
        let request = GenerateRequest { messages: messages.collect::<Vec<_>>().into() };
        let (sender, mut events) = mpsc::channel(256);
        let generating = handy.generate(request, sender, CancellationToken::new());
        tokio::time::timeout(Duration::from_secs(30), generating).await.unwrap();
        let (mut text, mut last) = (String::new(), None);
        while let Ok(event) = events.try_recv() {
            match event {
                LlmEvent::Text(piece) => text.push_str(&piece),
                other => last = Some(other),
            }
        }
        (text, last)
    }

    fn bodies(doubles: &Doubles) -> Vec<Value> {
        let entries = doubles.log().entries();
        let bodies = entries.iter().filter_map(|entry| match &entry.what {
            What::Request { target, body } if target.ends_with("completions") => {
                serde_json::from_str(body).ok()
            }
            _ => None,
        });
        bodies.collect()
    }

    #[tokio::test]
    async fn calls_run_at_once_and_their_results_stay_in_the_conversation() {
        let calls = [("weather", json!({"city": "Ulm"})), ("weather", json!({"city": "Bonn"}))];
        let script = LlmScript::new().calls(calls).answer("Rain in both.").answer("Yes.");
        let (doubles, handy) = open(script, Duration::ZERO).await;
        let weather = (Role::User, "Weather?");
        let (text, last) = ask(&handy, &[weather]).await;
        assert_eq!((text.as_str(), last), ("Rain in both.", Some(LlmEvent::End)));
        let (text, _) =
            ask(&handy, &[weather, (Role::Assistant, "Rain in both."), (Role::User, "Really?")])
                .await;
        assert_eq!(text, "Yes.");
        let bodies = bodies(&doubles);
        let results = |body: &Value| {
            let all = body["messages"].as_array().unwrap().clone();
            all.iter()
                .filter(|it| it["role"] == "tool")
                .map(|it| it["content"].clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(results(&bodies[1]), ["rain in Ulm", "rain in Bonn"]);
        assert_eq!(results(&bodies[2]), ["rain in Ulm", "rain in Bonn"]);
        let roles: Vec<_> = bodies[2]["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| it["role"].as_str().unwrap())
            .collect();
        assert_eq!(roles, ["user", "assistant", "tool", "tool", "assistant", "user"]);
    }

    #[tokio::test]
    async fn a_model_that_never_stops_calling_must_answer_after_three_rounds() {
        let call = || ("weather", json!({"city": "Ulm"}));
        let script = (0..3).fold(LlmScript::new(), |it, _| it.calls([call()]));
        let (doubles, handy) = open(script.answer("Enough."), Duration::ZERO).await;
        assert_eq!(ask(&handy, &[(Role::User, "Hi")]).await.0, "Enough.");
        let bodies = bodies(&doubles);
        assert_eq!(bodies.len(), 4);
        assert!(bodies[2].get("tools").is_some() && bodies[3].get("tools").is_none());
    }

    #[tokio::test]
    async fn who_waits_for_a_tool_hears_so() {
        let script = LlmScript::new().call("weather", json!({"city": "Ulm"})).answer("Rain.");
        let (_doubles, handy) = open(script, Duration::from_millis(900)).await;
        assert_eq!(ask(&handy, &[(Role::User, "Weather?")]).await.0, "One moment. Rain.");
    }

    #[tokio::test]
    async fn an_interruption_ends_generation_and_calls() {
        let script = LlmScript::new().call("weather", json!({"city": "Ulm"}));
        let (_doubles, handy) = open(script, Duration::from_mins(10)).await;
        let request =
            GenerateRequest { messages: [Message { role: Role::User, text: "Hi".into() }].into() };
        let (sender, mut events) = mpsc::channel(16);
        let cancel = CancellationToken::new();
        let stop = async {
            // The filler tells that the call is under way.
            assert!(matches!(
                events.recv().await,
                Some(LlmEvent::Text(_) | LlmEvent::Usage { .. })
            ));
            cancel.cancel();
        };
        let both = async { tokio::join!(handy.generate(request, sender, cancel.clone()), stop) };
        tokio::time::timeout(Duration::from_secs(10), both).await.unwrap();
    }

    #[test]
    fn rounds_are_woven_in_where_they_happened() {
        let round = |after: &str| Round {
            after: after.into(),
            turns: [
                Turn::Assistant {
                    text: String::new(),
                    calls: vec![ToolCall {
                        id: after.into(),
                        name: "t".into(),
                        arguments: "{}".into(),
                        signature: None,
                    }],
                },
                Turn::Results(vec![ToolResult {
                    id: after.into(),
                    name: "t".into(),
                    text: "r".into(),
                    is_error: false,
                }]),
            ],
        };
        let turns = vec![Turn::User("b and more".into()), Turn::User("c".into())];
        let rounds = VecDeque::from([round("a"), round("b"), round("b"), round("c")]);
        let all = woven(turns, &rounds);
        let brief: Vec<_> = all
            .iter()
            .map(|turn| match turn {
                Turn::User(text) => format!("u {text}"),
                Turn::Results(results) => format!("r {}", results[0].id),
                _ => "a".into(),
            })
            .collect();
        assert_eq!(brief, ["u b and more", "a", "r b", "a", "r b", "u c", "a", "r c"]);
    }
}
