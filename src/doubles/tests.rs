//! Whole calls against the doubles, in virtual time: what a caller hears when a provider fails.

mod handover;
mod late;
mod microphones;
mod over;
mod soak;
mod table;
mod usage;
mod warm;

use std::{sync::Arc, time::Duration};

use url::Url;

use super::{Script, serve};
use crate::{
    audio::wav,
    cli::runtime::{Assembly, double_endpoints, driver_config, providers},
    config::{Agent, source::SourceFile},
    replay::realtime::{self, Replayed},
    session::{command::Metric, ports::Shown, state::AgentState},
    stt::late::Keeper,
    transcript::segment::SpeakerKind,
};

const QUESTION: &str = "What time do you open on Saturday?";
const ANSWER: &str = "We are open from nine to five on Saturdays, and from ten to four on Sundays.";
const NEXT_QUESTION: &str = "Thank you. Can I park there?";
const NEXT_ANSWER: &str = "Yes, you can park right behind the house.";

/// One kind of provider alone, or with others behind each.
const ALONE: &str = "[llm]\nprovider = \"openai\"\n";
const BEHIND: &str = "[[llm.fallback]]\nprovider = \"anthropic\"\n\
                      [[llm.fallback]]\nprovider = \"google\"\n\
                      [[voice.fallback]]\nprovider = \"openai\"\n\
                      [[stt.fallback]]\nprovider = \"assemblyai\"\n";

fn agent(text: &str) -> Agent {
    let file = SourceFile::new("agents/a.toml", text);
    Agent::parse("a", &file, |path| Ok(SourceFile::new(path, "Be brief.")))
        .unwrap_or_else(|errors| panic!("{}", errors.render(false)))
}

/// What a call was like.
#[derive(Debug, Default)]
struct Call {
    /// Final rows: who, what, when (ms).
    rows: Vec<(SpeakerKind, String, u64)>,
    apologies: u32,
    ended: Option<AgentState>,
    /// When the agent was first heard after the end of each utterance, in ms after it.
    silences: Vec<Option<u64>>,
}

impl Call {
    fn said(&self, kind: SpeakerKind) -> Vec<&str> {
        let rows = self.rows.iter().filter(|(who, ..)| *who == kind);
        rows.map(|(_, text, _)| text.as_str()).collect()
    }
}

/// A recorded question every `every`, so many times.
fn caller(times: usize, every: Duration) -> (Vec<i16>, Vec<u64>) {
    let question = wav::read("fixtures/audio/en-us-question.wav".as_ref()).unwrap().samples;
    let (mut samples, mut ends) = (vec![0; 16_000], Vec::new());
    for _ in 0..times {
        let from = samples.len();
        samples.extend(&question);
        // As the fixture's description says.
        ends.push(from as u64 / 16 + 2_509);
        samples.resize(from + every.as_millis() as usize * 16, 0);
    }
    (samples, ends)
}

/// Runs a call of two questions.
async fn call(agent: &Agent, script: Script) -> Call {
    let (samples, ends) = caller(2, Duration::from_secs(10));
    run(agent, script, samples, &ends).await
}

async fn run(agent: &Agent, script: Script, samples: Vec<i16>, ends: &[u64]) -> Call {
    run_kept(agent, script, samples, ends, None).await
}

/// The same; what nobody could hear goes to `keeper`.
async fn run_kept(
    agent: &Agent,
    script: Script,
    samples: Vec<i16>,
    ends: &[u64],
    keeper: Option<Keeper>,
) -> Call {
    let doubles = serve(script).await.unwrap();
    let base = Url::parse(&doubles.base_url()).unwrap();
    let providers = providers(agent, double_endpoints(agent, &base)).unwrap();
    let mut call = Call::default();
    let mut config = driver_config(agent, "", "agent");
    config.keeper = keeper;
    let replayed =
        realtime::run(Arc::from(samples), config, providers, async |at, shown| match shown {
            Shown::Transcript(segment) if segment.is_final => {
                call.rows.push((segment.kind, segment.text.clone(), at));
            }
            Shown::Metric(Metric::Apology) => call.apologies += 1,
            Shown::State(state) => call.ended = Some(*state),
            _ => {}
        })
        .await;
    let Replayed { reply, reply_rate, .. } = replayed;
    let heard_at = |from_ms: u64| {
        let from = (from_ms * u64::from(reply_rate) / 1_000) as usize;
        let rest = reply.get(from..).unwrap_or_default();
        let first = rest.iter().position(|sample| sample.unsigned_abs() > 300)?;
        Some(first as u64 * 1_000 / u64::from(reply_rate))
    };
    call.silences = ends.iter().map(|end| heard_at(*end)).collect();
    doubles.shutdown().await;
    call
}
