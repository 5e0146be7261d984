//! `antiphon check --live`: one cheap call to each provider that the agent names, and what came of it.

use std::{sync::Arc, time::Duration};

use serde::Serialize;
use tokio::{sync::mpsc, time::Instant};

use super::providers;
use crate::{
    audio::queue::audio_queue,
    config::{
        Agent, Config,
        agent::LlmSettings,
        env::{Endpoint, recogniser},
    },
    llm::model::{Ask, Model, Patience, Piece, Turn},
    stt::{Stt, SttControl, SttEvent},
    tts::{SpeechId, Tts, TtsCommand, TtsEvent},
};

/// How long one provider may take.
const LIMIT: Duration = Duration::from_secs(15);

/// What one provider gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found {
    /// `stt`, `llm`, `tts`.
    pub kind: &'static str,
    pub provider: String,
    pub model: String,
    /// None: not asked, because there is no key.
    pub ok: Option<bool>,
    pub found: String,
}

/// Asks each of them, one after the other.
pub async fn ask_all(config: &Config, agent: &Agent) -> Vec<Found> {
    let mut all = Vec::new();
    for settings in agent.stt.chain() {
        let at = config.endpoint(recogniser(&settings.provider), None);
        let ask = |at| async move { hear(providers::ears(settings, at)?).await };
        all.push(found("stt", &settings.provider, &settings.model, at, ask).await);
    }
    if agent.transcribe_only() {
        return all;
    }
    for settings in agent.llm.chain() {
        let at = config.endpoint(&settings.provider, settings.base_url.as_ref());
        let ask = |at| async move {
            // Enough for a word, however the model counts.
            let brief = LlmSettings { max_tokens: 16, ..settings.clone() };
            think(providers::model(&brief, at)?).await
        };
        all.push(found("llm", &settings.provider, &settings.model, at, ask).await);
    }
    for settings in agent.voice.chain() {
        let at = config.endpoint(&settings.provider, None);
        let limit = agent.voice.first_audio_timeout;
        let ask = |at| async move { speak(providers::voice(settings, at, true, limit)?).await };
        all.push(found("tts", &settings.provider, &settings.model, at, ask).await);
    }
    all
}

async fn found<F: Future<Output = Result<String, String>>>(
    kind: &'static str,
    provider: &str,
    model: &str,
    at: Option<Endpoint>,
    ask: impl FnOnce(Endpoint) -> F,
) -> Found {
    let (ok, found) = match at {
        None => (None, "there is no key, so it was not asked".to_owned()),
        Some(at) => match tokio::time::timeout(LIMIT, ask(at)).await {
            Ok(Ok(found)) => (Some(true), found),
            Ok(Err(problem)) => (Some(false), problem),
            Err(_) => (Some(false), format!("nothing came within {} s", LIMIT.as_secs())),
        },
    };
    Found { kind, provider: provider.to_owned(), model: model.to_owned(), ok, found }
}

fn after(begun: Instant, what: &str) -> String {
    format!("{what} after {} ms", begun.elapsed().as_millis())
}

async fn think(model: Arc<dyn Model>) -> Result<String, String> {
    let turns = vec![Turn::User("Answer with the one word: yes".into())];
    let ask = Ask { turns, ..Ask::default() };
    let (sender, mut pieces) = mpsc::channel(16);
    let begun = Instant::now();
    let streaming = model.stream(&ask, Patience::OWN, sender);
    let first = async {
        while let Some(piece) = pieces.recv().await {
            if matches!(piece, Piece::Text(_)) {
                return Some(after(begun, "answers: first token"));
            }
        }
        None
    };
    tokio::select! {
        biased;
        Some(found) = first => Ok(found),
        ended = streaming => match ended {
            Ok(()) => Ok(after(begun, "answers, without a word,")),
            Err(error) => Err(error.to_string()),
        },
    }
}

async fn speak(voice: Arc<dyn Tts>) -> Result<String, String> {
    let (sender, mut events) = mpsc::channel(64);
    let connection = voice.connect(sender);
    let begun = Instant::now();
    let id = SpeechId(1);
    for command in [TtsCommand::Speak { id, text: "Yes.".into() }, TtsCommand::Finish { id }] {
        connection.commands.send(command).await.map_err(|_| "it takes no text".to_owned())?;
    }
    while let Some(event) = events.recv().await {
        match event {
            TtsEvent::Audio { .. } => return Ok(after(begun, "speaks: first audio")),
            TtsEvent::Error { error, .. } => return Err(error.to_string()),
            _ => {}
        }
    }
    Err("it says nothing".into())
}

async fn hear(recogniser: Arc<dyn Stt>) -> Result<String, String> {
    let (audio, receiver) = audio_queue(16_000);
    let (sender, mut events) = mpsc::channel(64);
    let stream = recogniser.open(receiver, sender);
    let begun = Instant::now();
    audio.push(&[0; 4_800]);
    while let Some(event) = events.recv().await {
        match event {
            SttEvent::Connected => {
                let found = after(begun, "listens: connected");
                let _ = stream.control.send(SttControl::Close).await;
                // A key may be refused only after the upgrade.
                while let Some(event) = events.recv().await {
                    if let SttEvent::Failed(error) = event {
                        return Err(error.to_string());
                    }
                }
                return Ok(found);
            }
            SttEvent::Lost { reason, .. } => return Err(reason),
            SttEvent::Failed(error) => return Err(error.to_string()),
            _ => {}
        }
    }
    Err("it ends at once".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::source::SourceFile,
        doubles::{Script, faults::Faulty, serve},
    };

    #[tokio::test]
    async fn each_provider_is_asked_and_one_without_a_key_is_named() {
        let mut script = Script::default();
        script.tts = script.tts.refuse_always(401);
        let doubles = serve(script).await.unwrap();
        let base = doubles.base_url();
        let config = Config::from_vars([
            ("DEEPGRAM_API_KEY", "k"),
            ("OPENAI_API_KEY", "k"),
            ("ELEVENLABS_API_KEY", "k"),
            ("DEEPGRAM_BASE_URL", &base),
            ("OPENAI_BASE_URL", &base),
            ("ELEVENLABS_BASE_URL", &base),
        ])
        .unwrap();
        let text = "[llm]\nprovider = \"openai\"\n[[llm.fallback]]\nprovider = \"anthropic\"\n";
        let file = SourceFile::new("agents/a.toml", text);
        let agent =
            Agent::parse("a", &file, |path| Ok(SourceFile::new(path, "Be brief."))).unwrap();
        let found = ask_all(&config, &agent).await;
        let brief: Vec<_> = found.iter().map(|it| (it.kind, it.provider.as_str(), it.ok)).collect();
        assert_eq!(
            brief,
            [
                ("stt", "deepgram", Some(true)),
                ("llm", "openai", Some(true)),
                ("llm", "anthropic", None),
                ("tts", "elevenlabs", Some(false)),
            ]
        );
        assert!(found[3].found.contains("401"), "{}", found[3].found);
    }
}
