//! The chain against doubles of three providers, over loopback.

use tokio::time::timeout;

use super::*;
use crate::{
    doubles::{
        Doubles, Script,
        faults::Faulty,
        llm::LlmScript,
        log::{Entry, What},
        serve,
    },
    llm::{
        Message, Role,
        anthropic::{Anthropic, AnthropicConfig},
        gemini::{Gemini, GeminiConfig},
        openai::{OpenAi, OpenAiConfig},
    },
};

const BOUND: Duration = Duration::from_secs(10);
const WHOLE: &str = "We are open from nine to five on every day of the week.";

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn open_hours() -> LlmScript {
    LlmScript::new().answer_to("open", WHOLE)
}

/// Claude, then OpenAI, then Gemini.
struct Line {
    chain: Chain,
    doubles: Doubles,
}

impl Line {
    async fn open(script: Script) -> Self {
        let doubles = serve(script).await.unwrap();
        let (v1, v1beta) = (doubles.base_url(), doubles.base_url().replace("/v1", "/v1beta"));
        let anthropic =
            AnthropicConfig { base_url: v1.clone(), ..AnthropicConfig::new("k".into(), "claude") };
        let openai = OpenAiConfig { base_url: v1, ..OpenAiConfig::new("k".into(), "gpt") };
        let gemini = GeminiConfig { base_url: v1beta, ..GeminiConfig::new("k".into(), "gemini") };
        let models: Vec<Arc<dyn Model>> = vec![
            Arc::new(Anthropic::new(anthropic).unwrap()),
            Arc::new(OpenAi::new(openai).unwrap()),
            Arc::new(Gemini::new(gemini).unwrap()),
        ];
        let haste = Haste { first_token: ms(300), stall: ms(200) };
        Self { chain: Chain::new(models, haste).unwrap(), doubles }
    }

    /// What is told, and which links told their usage.
    async fn ask(&self) -> (Result<String, LlmError>, Vec<usize>) {
        let messages = [Message { role: Role::User, text: "When are you open?".into() }];
        let ask = Ask::new(&messages);
        let (sender, mut told) = mpsc::channel(64);
        let answering = async {
            let answer = self.chain.answer(&ask, &sender).await;
            drop(sender);
            answer
        };
        let gather = async {
            let (mut text, mut links) = (String::new(), Vec::new());
            while let Some(it) = told.recv().await {
                match it {
                    Told::Text(piece) => text.push_str(&piece),
                    Told::Usage { link, .. } => links.push(usize::from(link)),
                    Told::Working => {}
                }
            }
            (text, links)
        };
        let (answer, (text, links)) =
            timeout(BOUND, async { tokio::join!(answering, gather) }).await.unwrap();
        (
            answer.map(|answer| {
                assert_eq!(answer.text, text);
                text
            }),
            links,
        )
    }

    fn asked(&self, provider: &str) -> usize {
        let is = |entry: &&Entry| {
            entry.provider == provider
                && matches!(&entry.what, What::Request { target, .. } if !target.ends_with("models"))
        };
        self.doubles.log().entries().iter().filter(is).count()
    }
}

fn script(anthropic: LlmScript, openai: LlmScript, gemini: LlmScript) -> Script {
    Script { anthropic, llm: openai, gemini, ..Script::default() }
}

#[tokio::test]
async fn each_provider_answers_over_its_own_wire() {
    for link in 0..3 {
        let mut scripts = [open_hours(), open_hours(), open_hours()];
        for broken in scripts.iter_mut().take(link) {
            *broken = broken.clone().refuse_always(500);
        }
        let [anthropic, openai, gemini] = scripts;
        let line = Line::open(script(anthropic, openai, gemini)).await;
        assert_eq!(line.ask().await, (Ok(WHOLE.into()), vec![link]));
    }
}

#[tokio::test]
async fn every_fault_in_mid_answer_is_gone_on_from_without_a_repetition() {
    for begins_anew in [false, true] {
        for fault in [
            LlmScript::disconnect_after as fn(LlmScript, usize) -> LlmScript,
            LlmScript::stall_after,
            LlmScript::fail_after,
        ] {
            for at in [1, 5, 6, 20] {
                let next = if begins_anew { open_hours().begins_anew() } else { open_hours() };
                let broken = fault(open_hours(), at);
                let line = Line::open(script(broken, next, open_hours())).await;
                let (text, links) = line.ask().await;
                assert_eq!(text.unwrap(), WHOLE, "after {at} tokens, anew: {begins_anew}");
                assert_eq!(links.last(), Some(&1));
            }
        }
    }
}

#[tokio::test]
async fn faults_that_cost_nothing_are_not_heard_of() {
    for broken in
        [open_hours().malformed_after(3), open_hours().disorder_after(4), open_hours().drip(ms(5))]
    {
        let line = Line::open(script(broken, open_hours(), open_hours())).await;
        assert_eq!(line.ask().await, (Ok(WHOLE.into()), vec![0]));
    }
}

#[tokio::test]
async fn a_model_that_failed_is_left_alone_for_a_while() {
    let line =
        Line::open(script(open_hours().refuse(529), LlmScript::new(), LlmScript::new())).await;
    for _ in 0..3 {
        line.ask().await.0.unwrap();
    }
    assert_eq!((line.asked("anthropic"), line.asked("openai")), (1, 3));
}

#[tokio::test]
async fn a_wrong_key_of_the_first_is_the_seconds_turn() {
    let line = Line::open(script(open_hours().refuse(401), open_hours(), open_hours())).await;
    assert_eq!(line.ask().await.0.unwrap(), WHOLE);
}

#[tokio::test]
async fn two_that_die_in_the_same_answer_are_made_good_by_the_third() {
    let anthropic = open_hours().disconnect_after(4);
    let openai = open_hours().fail_after(6);
    let line = Line::open(script(anthropic, openai, open_hours())).await;
    let (text, links) = line.ask().await;
    assert_eq!((text, links.last()), (Ok(WHOLE.into()), Some(&2)));
}

/// What a chain tells a session; cancelled at the first word, if so asked.
async fn told(line: &Line, is_cut: bool) -> Vec<LlmEvent> {
    let (sender, mut events) = mpsc::channel(64);
    let cancel = CancellationToken::new();
    let (chain, token) = (line.chain.clone(), cancel.clone());
    let messages = [Message { role: Role::User, text: "When are you open?".into() }];
    let request = GenerateRequest { messages: messages.into() };
    tokio::spawn(async move { chain.generate(request, sender, token).await });
    let mut told = Vec::new();
    while let Some(event) = timeout(BOUND, events.recv()).await.unwrap() {
        if is_cut {
            cancel.cancel();
        }
        told.push(event);
    }
    told
}

/// Link, input tokens, output tokens, whether estimated.
fn usage(told: &[LlmEvent]) -> Vec<(u8, u64, u64, bool)> {
    let usage = told.iter().filter_map(|event| match *event {
        LlmEvent::Usage { link, input_tokens, output_tokens, estimated, .. } => {
            Some((link, input_tokens, output_tokens, estimated))
        }
        _ => None,
    });
    usage.collect()
}

#[tokio::test]
async fn an_answer_that_is_interrupted_has_used_something() {
    let line = Line::open(script(open_hours().stall_after(5), open_hours(), open_hours())).await;
    let told = told(&line, true).await;
    let [(0, 5, written, true)] = usage(&told)[..] else { panic!("{told:?}") };
    assert!((1..=5).contains(&written), "{told:?}");
    assert!(!told.contains(&LlmEvent::End));
}

#[tokio::test]
async fn what_each_used_of_an_answer_that_broke_off_is_told_of_each() {
    let line = Line::open(script(open_hours().stall_after(5), open_hours(), open_hours())).await;
    let told = told(&line, false).await;
    let [(0, 5, 1.., true), (1, 1.., 1.., false)] = usage(&told)[..] else { panic!("{told:?}") };
    assert_eq!(
        (line.chain.name_of(0), line.chain.name_of(1).0),
        (("anthropic", "claude"), "openai")
    );
}

#[tokio::test]
async fn a_request_that_is_refused_has_used_nothing() {
    let line = Line::open(script(open_hours().refuse(500), open_hours(), open_hours())).await;
    let told = told(&line, false).await;
    assert!(matches!(usage(&told)[..], [(1, _, _, false)]), "{told:?}");
}

#[tokio::test]
async fn all_down_is_an_error_and_the_next_turn_is_answered() {
    let broken = || open_hours().refuse(500);
    let line = Line::open(script(broken(), broken(), LlmScript::new().refuse(400))).await;
    assert!(line.ask().await.0.is_err());
    assert!(line.ask().await.0.is_ok());
}

#[tokio::test]
async fn a_single_model_goes_on_with_its_own_answer() {
    let doubles = serve(Script { llm: open_hours().disconnect_after(7), ..Script::default() });
    let doubles = doubles.await.unwrap();
    let config =
        OpenAiConfig { base_url: doubles.base_url(), ..OpenAiConfig::new("k".into(), "gpt") };
    let chain = Chain::new(vec![Arc::new(OpenAi::new(config).unwrap())], Haste::default()).unwrap();
    let line = Line { chain, doubles };
    assert_eq!(line.ask().await.0.unwrap(), WHOLE);
}

#[tokio::test]
async fn cancel_closes_the_connection_says_no_more_and_opens_the_next() {
    let stalled = Line::open(script(open_hours().stall_after(5), open_hours(), open_hours())).await;
    let (sender, mut events) = mpsc::channel(64);
    let cancel = CancellationToken::new();
    let (chain, token) = (stalled.chain.clone(), cancel.clone());
    let messages = [Message { role: Role::User, text: "When?".into() }];
    let request = GenerateRequest { messages: messages.into() };
    tokio::spawn(async move { chain.generate(request, sender, token).await });
    assert!(matches!(timeout(BOUND, events.recv()).await.unwrap(), Some(LlmEvent::Text(_))));
    cancel.cancel();
    let log = stalled.doubles.log();
    timeout(BOUND, log.wait_for_count(1, |entry| entry.what == What::Closed)).await.unwrap();
    while let Some(event) = timeout(BOUND, events.recv()).await.unwrap() {
        assert!(matches!(event, LlmEvent::Text(_) | LlmEvent::Usage { .. }), "{event:?}");
    }
    let is_models = |entry: &Entry| matches!(&entry.what, What::Request { target, .. } if target.ends_with("/models"));
    timeout(BOUND, log.wait_for_count(1, is_models)).await.unwrap();
}

#[tokio::test]
async fn a_simple_turn_is_the_small_models_and_the_large_one_stands_behind() {
    for (small, expected) in [
        (LlmScript::new().answer("Small."), "Small."),
        (LlmScript::new().refuse_always(400), "Large."),
    ] {
        let large = LlmScript::new().answer("Large.");
        let line = Line::open(script(small, large, LlmScript::new())).await;
        let links = &line.chain.links;
        let one = |at: usize| Chain::new(vec![links[at].model.clone()], Haste::default()).unwrap();
        let line = Line { chain: one(1).with_small(one(0)), doubles: line.doubles };
        let (text, links) = line.ask().await;
        assert_eq!(text.unwrap(), expected);
        // Both are behind the one that stands first: it is link 0 and the small one 1.
        let by = if expected == "Small." { ("anthropic", 1) } else { ("openai", 0) };
        assert_eq!((line.chain.name_of(links[0] as u8).0, links[0]), by);
    }
}
