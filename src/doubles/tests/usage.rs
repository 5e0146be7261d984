//! What a call uses is counted, whatever becomes of its answers.

use super::*;
use crate::{
    doubles::{llm::LlmScript, log::What},
    telemetry::usage::Totals,
};

/// What a call has used, and how many answers were asked for.
async fn used(text: &str, script: Script, samples: Vec<i16>) -> (Totals, usize) {
    let agent = agent(text);
    let doubles = serve(script).await.unwrap();
    let base = Url::parse(&doubles.base_url()).unwrap();
    let providers = providers(&agent, double_endpoints(&agent, &base)).unwrap();
    let (priced, mut totals) = (providers.clone(), Totals::default());
    let config = driver_config(&agent, "", "agent");
    realtime::run(Arc::from(samples), config, providers, async |_, shown| {
        if let Shown::Usage(usage) = shown {
            totals.add(priced.used(*usage));
        }
    })
    .await;
    let is_answer = |what: &What| matches!(what, What::Request { body, .. } if !body.is_empty());
    let entries = doubles.log().entries();
    let asked = entries.iter().filter(|it| it.provider == "openai" && is_answer(&it.what)).count();
    doubles.shutdown().await;
    (totals, asked)
}

fn named(totals: &Totals) -> Vec<(&str, &str, bool)> {
    let rows = totals.rows().iter();
    rows.map(|row| (row.service.as_str(), row.provider.as_str(), row.estimated.is_some())).collect()
}

#[tokio::test(start_paused = true)]
async fn an_interrupted_call_is_priced() {
    let long = "This is a very long answer that goes on and on. ".repeat(40);
    let script = Script {
        llm: LlmScript::new().answer_to("", &long).token(Duration::from_millis(40)),
        ..sound()
    };
    // The second question comes while the answer to the first is being written.
    let (samples, _) = caller(2, Duration::from_secs(5));
    let (totals, asked) = used(ALONE, script, samples).await;
    assert!(asked >= 2, "{asked}");
    assert!(named(&totals).contains(&("llm", "openai", true)), "{totals:?}");
    assert!(totals.rows().iter().all(|row| row.cost_nano_usd.is_some()), "{totals:?}");
    let spoken = totals.rows().iter().find(|row| row.service == "tts").unwrap();
    assert!(spoken.characters.unwrap() > 0 && totals.cost_usd() > 0.0);
}

#[tokio::test(start_paused = true)]
async fn what_others_do_in_the_place_of_one_that_fails_is_theirs() {
    use crate::doubles::faults::Faulty;
    let mut script = sound();
    script.llm = script.llm.disconnect_after(11);
    script.tts = script.tts.refuse_always(500);
    script.stt = script.stt.refuse_always(401);
    let (samples, _) = caller(2, Duration::from_secs(10));
    let (totals, _) = used(&format!("{ALONE}{BEHIND}"), script, samples).await;
    let named = named(&totals);
    for one in [("llm", "openai", true), ("llm", "anthropic", false)] {
        assert!(named.contains(&one), "{one:?}: {named:?}");
    }
    for one in [("tts", "openai", false), ("stt", "assemblyai", false)] {
        assert!(named.contains(&one), "{one:?}: {named:?}");
    }
    assert!(!named.iter().any(|(_, provider, _)| ["elevenlabs", "deepgram"].contains(provider)));
}

fn sound() -> Script {
    let mut script = Script::new([QUESTION, NEXT_QUESTION], []);
    for llm in [&mut script.llm, &mut script.anthropic] {
        *llm = llm.clone().answer_to("saturday", ANSWER).answer_to("park", NEXT_ANSWER);
    }
    script
}
