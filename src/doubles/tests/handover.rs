//! A conversation that is handed over to another agent of the session.

use serde_json::json;

use super::*;
use crate::{
    doubles::{llm::LlmScript, log::What},
    session::driver::Colleague,
    telemetry::usage::Totals,
};

const DESK: &str = "builtin_tools = [\"transfer\"]\ntransfer_to = { bills = \"agent:billing\" }\n\
                    [llm]\nprovider = \"openai\"\nmodel = \"gpt-4o-mini\"\n";
const BILLING: &str = "greeting = \"Billing, what can I do?\"\n\
                       [llm]\nprovider = \"openai\"\nmodel = \"gpt-4o\"\n";

#[tokio::test(start_paused = true)]
async fn the_next_agent_greets_answers_and_pays_with_its_own_model() {
    let llm = LlmScript::new().call("transfer", json!({"to": "bills"})).answer(NEXT_ANSWER);
    let script = Script { llm, ..Script::new([QUESTION, NEXT_QUESTION], []) };
    let doubles = serve(script).await.unwrap();
    let base = Url::parse(&doubles.base_url()).unwrap();
    let (desk, billing) = (agent(DESK), agent(BILLING));
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
    let by = |text: &str| ("billing".to_owned(), text.to_owned());
    assert_eq!(said, [by("Billing, what can I do?"), by(NEXT_ANSWER)]);
    let asked = entries.iter().filter_map(|entry| match &entry.what {
        What::Request { body, .. } if body.contains("\"gpt-4o\"") => Some(body),
        _ => None,
    });
    let asked: Vec<_> = asked.collect();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert!(asked[0].contains(QUESTION) && asked[0].contains(NEXT_QUESTION), "{asked:?}");
    let models: Vec<_> = totals.rows().iter().map(|row| row.model.as_str()).collect();
    assert!(models.contains(&"gpt-4o-mini") && models.contains(&"gpt-4o"), "{models:?}");
}
