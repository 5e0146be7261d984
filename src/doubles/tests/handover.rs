//! A conversation that is handed over to another agent of the session.

use serde_json::json;

use super::*;
use crate::{
    doubles::{
        llm::LlmScript,
        log::{Entry, What},
    },
    session::driver::Colleague,
    telemetry::usage::Totals,
};

const DESK: &str = "builtin_tools = [\"transfer\"]\ntransfer_to = { bills = \"agent:billing\" }\n\
                    [llm]\nprovider = \"openai\"\nmodel = \"gpt-4o-mini\"\n";
const BILLING: &str = "greeting = \"Billing, what can I do?\"\n\
                       [llm]\nprovider = \"openai\"\nmodel = \"gpt-4o\"\n";

/// What came of a call that begins with `DESK` and is handed over to `billing`.
struct Call {
    said: Vec<(String, String)>,
    entries: Vec<Entry>,
    totals: Totals,
}

async fn handed_over(billing: &str) -> Call {
    let llm = LlmScript::new().call("transfer", json!({"to": "bills"})).answer(NEXT_ANSWER);
    let script = Script { llm, ..Script::new([QUESTION, NEXT_QUESTION], []) };
    let doubles = serve(script).await.unwrap();
    let base = Url::parse(&doubles.base_url()).unwrap();
    let (desk, billing) = (agent(DESK), agent(billing));
    let mut providers = providers(&desk, double_endpoints(&desk, &base)).unwrap();
    let assembly = Assembly::new(&billing, double_endpoints(&billing, &base)).unwrap();
    let (llm, tts) = assembly.speaking(&providers.room).unwrap();
    let settings = driver_config(&billing, "", "agent").settings;
    let colleague = Colleague { name: "billing".into(), settings, llm, tts };
    providers.colleagues = Arc::from([colleague]);
    let (priced, mut totals, mut said) = (providers.clone(), Totals::default(), Vec::new());
    let config = driver_config(&desk, "", "agent");
    let (samples, _) = caller(2, Duration::from_secs(10));
    realtime::run(Arc::from(samples), config, providers, async |_, shown| match shown {
        Shown::Transcript(row) if row.is_final && row.kind == SpeakerKind::Agent => {
            said.push((row.speaker_name.clone(), row.text.clone()));
        }
        Shown::Usage(usage) => totals.add(priced.used(*usage)),
        _ => {}
    })
    .await;
    let entries = doubles.log().entries();
    doubles.shutdown().await;
    Call { said, entries, totals }
}

fn models<'a>(totals: &'a Totals, service: &str) -> Vec<&'a str> {
    let rows = totals.rows().iter().filter(|row| row.service == service);
    rows.map(|row| row.model.as_str()).collect()
}

#[tokio::test(start_paused = true)]
async fn the_next_agent_greets_answers_and_pays_with_its_own_model() {
    let Call { said, entries, totals } = handed_over(BILLING).await;
    let by = |text: &str| ("billing".to_owned(), text.to_owned());
    assert_eq!(said, [by("Billing, what can I do?"), by(NEXT_ANSWER)]);
    let asked = entries.iter().filter_map(|entry| match &entry.what {
        What::Request { body, .. } if body.contains("\"gpt-4o\"") => Some(body),
        _ => None,
    });
    let asked: Vec<_> = asked.collect();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert!(asked[0].contains(QUESTION) && asked[0].contains(NEXT_QUESTION), "{asked:?}");
    assert_eq!(models(&totals, "llm"), ["gpt-4o-mini", "gpt-4o"]);
}

#[tokio::test(start_paused = true)]
async fn a_voice_that_stays_is_paid_for_as_the_first_agents() {
    let voice = |text: &str| format!("{BILLING}[voice]\nmodel = \"eleven_flash_v2_5\"\n{text}");
    let other = handed_over(&voice("")).await;
    assert_eq!(models(&other.totals, "tts"), ["eleven_flash_v2_5"]);
    // The track has one sample rate: a voice of another is not heard on it.
    let stays = handed_over(&voice("output_format = \"pcm_48000\"\n")).await;
    assert_eq!(models(&stays.totals, "tts"), ["eleven_turbo_v2_5"]);
}
