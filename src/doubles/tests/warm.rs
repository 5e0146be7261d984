//! What is opened when a job is offered carries the whole call.

use super::*;

const QUESTIONS: usize = 5;

/// Connections at the doubles: when the job's offer was dealt with, and at the end of the call.
async fn connections(text: &str) -> (u64, u64, Vec<Option<u64>>) {
    let agent = agent(text);
    let said: Vec<String> = (0..QUESTIONS).map(|nth| format!("question number {nth}")).collect();
    let doubles = serve(Script::new(said.iter().map(String::as_str), [])).await.unwrap();
    let base = Url::parse(&doubles.base_url()).unwrap();
    let assembly = Assembly::new(&agent, double_endpoints(&agent, &base)).unwrap();
    assembly.prewarm().await;
    let offered = doubles.connections();
    let (samples, ends) = caller(QUESTIONS, Duration::from_secs(10));
    let config = driver_config(&agent, "", "agent");
    let replayed =
        realtime::run(Arc::from(samples), config, assembly.session(), async |_, _| {}).await;
    let rate = u64::from(replayed.reply_rate);
    let answered = ends.iter().map(|end| {
        let from = (end * rate / 1_000) as usize;
        replayed
            .reply
            .get(from..)?
            .iter()
            .position(|it| it.unsigned_abs() > 300)
            .map(|at| at as u64)
    });
    let answered = answered.collect();
    let all = doubles.connections();
    doubles.shutdown().await;
    (offered, all, answered)
}

#[tokio::test(start_paused = true)]
async fn no_turn_opens_a_connection_and_neither_does_the_call() {
    // A socket for the ears, one for the voice, one connection for the model and a spare.
    let (offered, all, answered) = connections(ALONE).await;
    assert!(answered.iter().all(Option::is_some), "{answered:?}");
    assert_eq!((offered, all), (4, 4));
}

#[tokio::test(start_paused = true)]
async fn no_turn_opens_a_connection_over_http_either() {
    let text = "[llm]\nprovider = \"anthropic\"\n[voice]\nprovider = \"openai\"\n\
                [stt]\nprovider = \"openai\"\n";
    let (offered, all, answered) = connections(text).await;
    assert!(answered.iter().all(Option::is_some), "{answered:?}");
    assert_eq!(offered, 6, "one and a spare each");
    // A voice asks for two pieces at once: then it keeps a third connection.
    assert!(all <= offered + 1, "{all}");
}
