//! The wire of OpenAI's transcriptions: a WAV in a form, JSON back.
//!
//! Source: platform.openai.com/docs/api-reference/audio/createTranscription. `verbose_json`, with
//! word times, is whisper-1's alone. What is missing or of another type counts as not there.

use serde_json::Value;

use crate::stt::{Transcript, Word, driver::SAMPLE_RATE};

/// More words than this in one utterance are not kept.
const MAX_WORDS: usize = 4_096;

/// What recognition is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// `gpt-4o-transcribe`, `gpt-4o-mini-transcribe`, `whisper-1`.
    pub model: String,
    /// ISO 639-1; the service finds out without it.
    pub language: Option<String>,
    /// Words that are likely to be said (names, products).
    pub keyterms: Vec<String>,
}

impl Options {
    fn is_whisper(&self) -> bool {
        self.model.starts_with("whisper")
    }

    /// ISO 639-1: `en-US` is `en` here.
    pub fn short_language(&self) -> Option<&str> {
        self.language.as_deref()?.split(['-', '_']).next()
    }

    /// The body of `POST {base}/audio/transcriptions` (RFC 7578); `boundary` stands in no WAV.
    pub fn form(&self, boundary: &str, samples: &[i16]) -> Vec<u8> {
        let mut fields = vec![("model", self.model.clone())];
        let format = if self.is_whisper() { "verbose_json" } else { "json" };
        fields.push(("response_format", format.into()));
        if self.is_whisper() {
            fields.push(("timestamp_granularities[]", "word".into()));
        }
        if let Some(short) = self.short_language() {
            fields.push(("language", short.to_owned()));
        }
        if !self.keyterms.is_empty() {
            fields.push(("prompt", self.keyterms.join(", ")));
        }
        let mut body = Vec::with_capacity(samples.len() * 2 + 2_048);
        for (name, value) in fields {
            let value = value.replace(['\r', '\n'], " ");
            body.extend(
                format!(
                    "--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n\
                     {value}\r\n"
                )
                .bytes(),
            );
        }
        body.extend(
            format!(
                "--{boundary}\r\nContent-Disposition: form-data; name=\"file\"; \
                 filename=\"speech.wav\"\r\nContent-Type: audio/wav\r\n\r\n"
            )
            .bytes(),
        );
        body.extend(wav(samples));
        body.extend(format!("\r\n--{boundary}--\r\n").bytes());
        body
    }
}

/// RIFF WAVE, PCM, mono s16.
fn wav(samples: &[i16]) -> Vec<u8> {
    let length = samples.len() as u32 * 2;
    let mut out = Vec::with_capacity(44 + samples.len() * 2);
    out.extend(b"RIFF");
    out.extend((36 + length).to_le_bytes());
    out.extend(b"WAVEfmt ");
    out.extend(16_u32.to_le_bytes());
    out.extend(1_u16.to_le_bytes());
    out.extend(1_u16.to_le_bytes());
    out.extend(SAMPLE_RATE.to_le_bytes());
    out.extend((SAMPLE_RATE * 2).to_le_bytes());
    out.extend(2_u16.to_le_bytes());
    out.extend(16_u16.to_le_bytes());
    out.extend(b"data");
    out.extend(length.to_le_bytes());
    out.extend(samples.iter().flat_map(|sample| sample.to_le_bytes()));
    out
}

/// Reads the answer about an utterance that lies at `start_ms` of the stream. `None`: no answer.
pub fn read(body: &[u8], start_ms: u64, duration_ms: u64) -> Option<Transcript> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let text = body.get("text")?.as_str()?.trim().to_owned();
    let at = |word: &Value, key: &str| {
        let seconds = word.get(key)?.as_f64()?.clamp(0.0, 86_400.0);
        Some(start_ms + (seconds * 1_000.0).round() as u64)
    };
    let words = body.get("words").and_then(Value::as_array).into_iter().flatten().take(MAX_WORDS);
    let words = words.filter_map(|word| {
        let from = at(word, "start")?;
        Some(Word {
            text: word.get("word")?.as_str()?.trim().to_owned(),
            start_ms: from,
            end_ms: at(word, "end").unwrap_or(from).max(from),
            // The service tells none.
            confidence: 1.0,
        })
    });
    Some(Transcript {
        confidence: if text.is_empty() { 0.0 } else { 1.0 },
        text,
        start_ms,
        duration_ms,
        words: words.collect(),
        language: body.get("language").and_then(Value::as_str).map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_utterance_is_a_wav_in_a_form() {
        let options = Options {
            model: "whisper-1".into(),
            language: Some("en-US".into()),
            keyterms: vec!["Ada".into()],
        };
        let body = options.form("B", &[1, -1]);
        let text = String::from_utf8_lossy(&body);
        for part in [
            "--B\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nwhisper-1\r\n",
            "name=\"response_format\"\r\n\r\nverbose_json\r\n",
            "name=\"language\"\r\n\r\nen\r\n",
            "name=\"prompt\"\r\n\r\nAda\r\n",
            "filename=\"speech.wav\"\r\nContent-Type: audio/wav\r\n\r\nRIFF",
        ] {
            assert!(text.contains(part), "{part:?} is not in {text:?}");
        }
        assert!(body.ends_with(b"\x01\x00\xff\xff\r\n--B--\r\n"));
    }

    #[test]
    fn answers_are_read_with_and_without_words() {
        let plain = read(br#"{"text":" Hello. ","usage":{}}"#, 500, 900).unwrap();
        assert_eq!((plain.text.as_str(), plain.start_ms, plain.duration_ms), ("Hello.", 500, 900));
        let body =
            br#"{"text":"Hi","language":"english","words":[{"word":"Hi","start":0.1,"end":0.3}]}"#;
        let verbose = read(body, 500, 900).unwrap();
        assert_eq!((verbose.words[0].start_ms, verbose.words[0].end_ms), (600, 800));
        assert_eq!(read(b"[]", 0, 0), None);
    }

    proptest! {
        #[test]
        fn no_body_can_hurt(body in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = read(&body, 0, 0);
        }
    }
}
