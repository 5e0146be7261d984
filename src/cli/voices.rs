//! `antiphon voices`: the voices that an agent file can name.

use crate::{
    cli::{Exit, fail, terminal},
    config::{Setup, env::Endpoint},
    tts::elevenlabs::voices::{self, VoiceInfo},
};

/// OpenAI has no list to ask for (platform.openai.com/docs/guides/text-to-speech).
const OPENAI: [&str; 11] = [
    "alloy", "ash", "ballad", "coral", "echo", "fable", "nova", "onyx", "sage", "shimmer", "verse",
];

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    antiphon voices                     ElevenLabs' voices, with ELEVENLABS_API_KEY\n  \
    antiphon voices --provider openai\n  \
    antiphon voices --json | jq -r '.[].id'")]
pub struct VoicesArgs {
    /// elevenlabs or openai
    #[arg(long, default_value = "elevenlabs", value_parser = ["elevenlabs", "openai"])]
    provider: String,
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

pub async fn run(setup: Setup, args: VoicesArgs) -> Exit {
    let voices = if args.provider == "openai" {
        OPENAI.iter().map(|name| named(name)).collect()
    } else {
        let Some(Endpoint { base_url, api_key }) = setup.config.endpoint("elevenlabs", None) else {
            fail(&"ELEVENLABS_API_KEY is not set, so ElevenLabs cannot be asked");
            return Exit::Usage;
        };
        match voices::list(base_url.as_str(), api_key).await {
            Ok(voices) => voices,
            Err(error) => {
                fail(&format!("no voices: {error}"));
                return Exit::Server;
            }
        }
    };
    if args.json {
        terminal::json(&voices);
    } else {
        let mut out = terminal::Live::new(false);
        for voice in &voices {
            out.line(&row(voice));
        }
    }
    Exit::Done
}

fn named(name: &str) -> VoiceInfo {
    VoiceInfo {
        id: name.to_owned(),
        name: name.to_owned(),
        category: String::new(),
        labels: Vec::new(),
        preview_url: String::new(),
    }
}

fn row(voice: &VoiceInfo) -> String {
    let labels = voice.labels.join(", ");
    format!("{:<22} {:<24} {:<12} {labels}", voice.id, voice.name, voice.category)
        .trim_end()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_the_id_first() {
        let voice = VoiceInfo { labels: vec!["age: young".into()], ..named("alloy") };
        assert!(row(&voice).starts_with("alloy "));
        assert!(row(&voice).ends_with("age: young"));
    }
}
