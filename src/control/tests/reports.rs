//! A worker that reports to the endpoint, and what must not be seen on the way.

use super::*;
use crate::{
    session::command::Usage,
    telemetry::usage::Used,
    transcript::{
        reporter::{DEFAULT_OUTBOX_CAP, Reporter, ReporterConfig, SessionInfo},
        segment::{Segment, SpeakerKind},
    },
};

#[tokio::test]
async fn a_worker_reports_a_call_through_its_outbox() {
    let directory = tempfile::tempdir().unwrap();
    let control = Control::start(None).await;
    let reporter = Reporter::start(ReporterConfig {
        state_dir: directory.path().to_owned(),
        control_url: Some(control.url.parse().unwrap()),
        token: Some(SecretString::from(TOKEN)),
        outbox_cap: DEFAULT_OUTBOX_CAP,
    })
    .await
    .unwrap();
    let session = reporter.session(SessionInfo {
        room: "lobby".into(),
        session_key: "RM_1".into(),
        agent: "assistant".into(),
        started_at_unix_ms: 1_000_000,
    });
    let mut segment = Segment {
        id: "SG_1".into(),
        kind: SpeakerKind::User,
        speaker_id: "ann".into(),
        speaker_name: "Ann".into(),
        text: "Book a".into(),
        start_ms: 1_500,
        duration_ms: 400,
        confidence: 0.5,
        is_final: false,
    };
    session.interim(&segment);
    segment.text = "Book a table.".into();
    segment.is_final = true;
    session.final_segment(&segment).await.unwrap();
    session.state("thinking");
    session.usage(Used {
        usage: Usage::Stt { link: 0, audio_ms: 900 },
        provider: "deepgram",
        model: "nova-3",
        cost: Some(115_500),
    });
    session.close().await;
    assert!(reporter.flush(LIMIT).await);

    let id = control.session_of("lobby").await;
    let (_, status) = control.get(&format!("/api/sessions/{id}")).await;
    assert_eq!((&status["status"], &status["agent"]), (&json!("completed"), &json!("assistant")));
    let (_, page) = control.get(&format!("/api/sessions/{id}/transcripts")).await;
    let row = &page["transcripts"][0];
    assert_eq!((&row["content"], &row["timestampMs"]), (&json!("Book a table."), &json!(1_500)));
    let used = json!({
        "usage": [{
            "service": "stt", "provider": "deepgram", "model": "nova-3", "audioMs": 900,
            "costNanoUsd": 115_500
        }],
        "costUsd": 0.000_116
    });
    assert_eq!(control.get(&format!("/api/sessions/{id}/usage")).await.1, used);
    assert_eq!(control.get("/api/usage?from=1").await.1, used);
    assert_eq!(control.get("/api/usage?to=1").await.1, json!({"usage": [], "costUsd": 0.0}));
    let mut listener = control.listen(&id, Some("0")).await;
    let heard = listener.hear(4).await.join(" ");
    assert!(heard.starts_with("final:Book a table. state:thinking usage:"), "{heard}");
    assert!(heard.ends_with(r#"session:{"status":"completed"}"#), "{heard}");
}

/// Everything that is logged on this thread, at every level.
#[derive(Clone, Default)]
struct Logs(std::sync::Arc<parking_lot::Mutex<Vec<u8>>>);

impl std::io::Write for Logs {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_secret_reaches_the_log_or_a_client() {
    let logs = Logs::default();
    let writer = logs.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);

    let livekit = LiveKitDouble::start().await;
    let mut wrong = livekit.config();
    wrong.api_secret = SecretString::from("another-secret-another-secret-another");
    let mut answers = String::new();
    for config in [livekit.config(), wrong] {
        tracing::info!(?config, "configured");
        let control = Control::start(Some(config)).await;
        let id = control.create().await;
        for path in ["start", "end"] {
            let answer = control.post(&format!("/api/sessions/{id}/{path}"), &json!({})).await;
            answers.push_str(&answer.1.to_string());
        }
        let mislaid = control.client.get(format!("{}/api/sessions", control.url));
        let answer = read(mislaid.bearer_auth("mislaid-token").send().await.unwrap()).await;
        answers.push_str(&answer.1.to_string());

        let directory = tempfile::tempdir().unwrap();
        let reporter = Reporter::start(ReporterConfig {
            state_dir: directory.path().to_owned(),
            control_url: Some(control.url.parse().unwrap()),
            token: Some(SecretString::from("mislaid-token")),
            outbox_cap: DEFAULT_OUTBOX_CAP,
        })
        .await
        .unwrap();
        let session = reporter.session(SessionInfo {
            room: "r".into(),
            session_key: String::new(),
            agent: String::new(),
            started_at_unix_ms: 1,
        });
        session.state("idle");
        assert!(reporter.flush(LIMIT).await);
        tracing::info!(?reporter, ?session, "reported");
    }
    let logs = String::from_utf8(logs.0.lock().clone()).unwrap();
    assert!(logs.contains("refuses this worker's reports"), "the log was captured: {logs}");
    assert!(logs.contains("LIVEKIT_REFUSED"), "the log was captured: {logs}");
    // "eyJ": how every JWT begins.
    for secret in [TOKEN, SECRET, "another-secret", "mislaid-token", "eyJ"] {
        assert!(!logs.contains(secret), "{secret} in {logs}");
        assert!(!answers.contains(secret), "{secret} in {answers}");
    }
}
