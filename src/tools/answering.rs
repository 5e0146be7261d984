//! A chain of models with tools: asks, runs what is called for, asks again with the results.
//!
//! The session knows of none of this: it hears one answer. What was called and what came of it is
//! remembered in [`Rounds`] and put back into the conversation where it happened, so that later turns
//! know, also of what an interruption ended.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{Offered, Toolbox, rounds::Rounds};
use crate::llm::{
    GenerateRequest, Llm, LlmError, LlmEvent,
    chain::{Chain, Told, tell_all},
    model::{Ask, ToolCall, ToolResult, Turn},
};

/// Rounds of calls in one answer; after them the model must answer with what it has.
const MAX_STEPS: usize = 3;
/// Calls in one round; those beyond are refused.
const MAX_CALLS: usize = 8;
const QUEUE: usize = 64;
/// When nothing has been said and the tools take longer than this, the user hears that.
const PATIENCE: Duration = Duration::from_millis(700);
/// Until synthesis is heard, and how fast voices speak.
const VOICE_LATENCY: Duration = Duration::from_millis(500);
const CHARACTERS_A_SECOND: f64 = 15.0;
/// Longest wait until something has been said.
const MAX_SPEECH: Duration = Duration::from_secs(8);
/// How often it is told that tools are at work.
const TICK: Duration = Duration::from_secs(1);

/// A session's models with its tools.
#[derive(Debug)]
pub struct Handy {
    chain: Chain,
    tools: Toolbox,
    /// Said when tools take their time; empty: nothing.
    filler: String,
    rounds: Rounds,
}

impl Handy {
    pub fn new(chain: Chain, tools: Toolbox, filler: impl Into<String>) -> Self {
        Self { chain, tools, filler: filler.into(), rounds: Rounds::default() }
    }

    async fn answer(
        &self,
        request: &GenerateRequest,
        out: &mpsc::Sender<Told>,
    ) -> Result<(), LlmError> {
        let offered = self.tools.offered();
        let plain = Ask::new(&request.messages);
        let mut ask = Ask {
            turns: self.rounds.woven(plain.turns),
            tools: offered.specs(),
            must_answer: false,
        };
        let after = last_said(&ask.turns);
        let this = self.rounds.answer();
        let (mut spoken, mut said) = (false, 0);
        for step in 0..=MAX_STEPS {
            ask.must_answer = step == MAX_STEPS;
            let mut answer = self.chain.answer(&ask, out).await?;
            spoken |= !answer.text.trim().is_empty();
            said += answer.text.trim().chars().count();
            // What is called without having been offered is not answered with silence.
            if answer.calls.is_empty() || step == MAX_STEPS {
                if !spoken && !answer.calls.is_empty() {
                    return Err(LlmError::Interrupted("the model calls tools without end".into()));
                }
                return Ok(());
            }
            if spoken && !answer.text.ends_with(char::is_whitespace) {
                let _ = out.send(Told::Text(" ".into())).await;
            }
            answer.calls.truncate(MAX_CALLS);
            let round = self.rounds.begin(this, &after, &answer.calls);
            let results = {
                let calls = answer.calls.iter().enumerate();
                let calls = calls.map(|(nth, call)| {
                    let offered = &offered;
                    async move {
                        if offered.waits_for_speech(call) {
                            tokio::time::sleep(speaking(said)).await;
                        }
                        self.run(offered, round, nth, call).await
                    }
                });
                let mut running = std::pin::pin!(join_all(calls));
                let mut patience = std::pin::pin!(tokio::time::sleep(PATIENCE));
                let mut ticks = tokio::time::interval(TICK);
                loop {
                    tokio::select! {
                        biased;
                        results = &mut running => break results,
                        () = &mut patience, if !spoken && !self.filler.is_empty() => {
                            let _ = out.send(Told::Text(format!("{} ", self.filler))).await;
                            spoken = true;
                        }
                        _ = ticks.tick() => {
                            let _ = out.send(Told::Working).await;
                        }
                    }
                }
            };
            ask.turns.push(Turn::Assistant { text: answer.text, calls: answer.calls });
            ask.turns.push(Turn::Results(results));
        }
        Ok(())
    }

    /// Runs one call and remembers its result. Dropping this ends the call, unless it outlives an
    /// interruption: then its result is remembered when it comes.
    async fn run(&self, offered: &Offered, round: u64, nth: usize, call: &ToolCall) -> ToolResult {
        if !offered.outlives_interruption(call) {
            let result = offered.run(call).await;
            self.rounds.settle(round, nth, &result);
            return result;
        }
        self.rounds.under_way(round, nth);
        let (offered, rounds, owned) = (offered.clone(), self.rounds.clone(), call.clone());
        let task = async move {
            let result = offered.run(&owned).await;
            rounds.settle(round, nth, &result);
            result
        };
        tokio::spawn(task.in_current_span()).await.unwrap_or_else(|_| {
            let text = "the tool broke".into();
            let broke =
                ToolResult { id: call.id.clone(), name: call.name.clone(), text, is_error: true };
            self.rounds.settle(round, nth, &broke);
            broke
        })
    }
}

/// About how long it takes until so many characters have been heard.
fn speaking(characters: usize) -> Duration {
    if characters == 0 {
        return Duration::ZERO;
    }
    let speech = Duration::from_secs_f64(characters as f64 / CHARACTERS_A_SECOND);
    (VOICE_LATENCY + speech).min(MAX_SPEECH)
}

fn last_said(turns: &[Turn]) -> String {
    let said = turns.iter().rev().find_map(|turn| match turn {
        Turn::User(text) => Some(text.clone()),
        _ => None,
    });
    said.unwrap_or_default()
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
    use std::sync::Arc;

    use serde_json::{Value, json};
    use tokio::sync::Semaphore;

    use super::*;
    use crate::{
        doubles::{Doubles, Script, llm::LlmScript, log::What, serve},
        llm::{
            Message, Role,
            chain::Haste,
            model::ToolSpec,
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

    /// Tells that it is called, and returns when it may.
    #[derive(Debug)]
    struct Booking {
        called: mpsc::Sender<()>,
        may_end: Arc<Semaphore>,
    }

    #[async_trait::async_trait]
    impl Call for Booking {
        async fn call(&self, _: &Value) -> Result<String, ToolError> {
            self.called.send(()).await.unwrap();
            self.may_end.acquire().await.unwrap().forget();
            Ok("booked".into())
        }
    }

    fn tool(name: &str, run: impl Call, outlives_interruption: bool) -> Tool {
        Tool {
            spec: ToolSpec {
                name: name.into(),
                description: "Tells it".into(),
                parameters: json!({"type": "object", "properties": {"city": {"type": "string"}}}),
            },
            run: Arc::new(run),
            timeout: Duration::from_secs(4),
            outlives_interruption,
            waits_for_speech: false,
        }
    }

    async fn with(llm: LlmScript, tool: Tool) -> (Doubles, Handy) {
        let doubles = serve(Script { llm, ..Script::default() }).await.unwrap();
        let config =
            OpenAiConfig { base_url: doubles.base_url(), ..OpenAiConfig::new("k".into(), "gpt") };
        let chain = Chain::new(vec![Arc::new(OpenAi::new(config).unwrap())], Haste::default());
        let handy = Handy::new(chain.unwrap(), Toolbox::new(vec![tool]), "One moment.");
        (doubles, handy)
    }

    async fn open(llm: LlmScript, takes: Duration) -> (Doubles, Handy) {
        with(llm, tool("weather", Weather(takes), false)).await
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
                LlmEvent::Working => {}
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

    fn results(body: &Value) -> Vec<String> {
        let all = body["messages"].as_array().unwrap().clone();
        let results = all.iter().filter(|it| it["role"] == "tool");
        results.map(|it| it["content"].as_str().unwrap().to_owned()).collect()
    }

    #[tokio::test]
    async fn results_stay_in_the_conversation() {
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
    async fn the_calls_of_a_round_run_at_the_same_time() {
        let (called, mut calls) = mpsc::channel(8);
        let may_end = Arc::new(Semaphore::new(0));
        let script = LlmScript::new()
            .calls([("book", json!({})), ("book", json!({}))])
            .answer("Both are booked.");
        let booking = Booking { called, may_end: may_end.clone() };
        let (doubles, handy) = with(script, tool("book", booking, false)).await;
        let both_are_called = async {
            for _ in 0..2 {
                calls.recv().await.unwrap();
            }
            may_end.add_permits(2);
        };
        let (said, ()) = tokio::join!(ask(&handy, &[(Role::User, "Two tables")]), both_are_called);
        assert!(said.0.ends_with("Both are booked."), "{said:?}");
        assert_eq!(results(&bodies(&doubles)[1]), ["booked", "booked"]);
    }

    /// Interrupts the first answer once its tool is called, then asks again.
    async fn interrupted(outlives_interruption: bool) -> Vec<String> {
        let (called, mut calls) = mpsc::channel(8);
        let may_end = Arc::new(Semaphore::new(0));
        let script = LlmScript::new().call("book", json!({})).answer("Well.").answer("Well.");
        let booking = Booking { called, may_end: may_end.clone() };
        let (doubles, handy) = with(script, tool("book", booking, outlives_interruption)).await;
        let book = Message { role: Role::User, text: "Book it".into() };
        let cancel = CancellationToken::new();
        let (sender, _events) = mpsc::channel(256);
        let generating =
            handy.generate(GenerateRequest { messages: [book].into() }, sender, cancel.clone());
        let interrupt = async {
            calls.recv().await.unwrap();
            cancel.cancel();
        };
        tokio::join!(generating, interrupt);
        let mut told = Vec::new();
        for _ in 0..2 {
            ask(&handy, &[(Role::User, "Book it and hurry")]).await;
            told.push(results(bodies(&doubles).last().unwrap()).concat());
            if told.len() == 1 {
                may_end.add_permits(1);
                // Taken by a call that goes on; one that was ended does not wait any more.
                while outlives_interruption && may_end.available_permits() > 0 {
                    tokio::task::yield_now().await;
                }
                tokio::task::yield_now().await;
            }
        }
        told
    }

    #[tokio::test]
    async fn an_interruption_ends_a_call_and_the_model_learns_of_it() {
        let told = interrupted(false).await;
        assert!(told.iter().all(|told| told.contains("the user interrupted")), "{told:?}");
    }

    #[tokio::test]
    async fn a_call_that_outlives_the_interruption_tells_its_result_later() {
        assert_eq!(interrupted(true).await, ["still under way", "booked"]);
    }

    #[tokio::test]
    async fn a_model_that_calls_what_it_is_not_offered_any_more_is_a_failure() {
        let call = || ("weather", json!({"city": "Ulm"}));
        let script = (0..4).fold(LlmScript::new(), |it, _| it.calls([call()]));
        let (_doubles, handy) = open(script, Duration::ZERO).await;
        let (said, last) = ask(&handy, &[(Role::User, "Hi")]).await;
        assert!(said.is_empty() && matches!(last, Some(LlmEvent::Error(_))), "{said} {last:?}");
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

    #[test]
    fn what_has_been_said_is_given_its_time() {
        assert_eq!(speaking(0), Duration::ZERO);
        assert_eq!(speaking("I'll put you through to sales.".len()), Duration::from_millis(2_500));
        assert_eq!(speaking(10_000), MAX_SPEECH);
    }

    #[tokio::test]
    async fn who_waits_for_a_tool_hears_so() {
        let script = LlmScript::new().call("weather", json!({"city": "Ulm"})).answer("Rain.");
        let (_doubles, handy) = open(script, Duration::from_millis(900)).await;
        assert_eq!(ask(&handy, &[(Role::User, "Weather?")]).await.0, "One moment. Rain.");
    }
}
