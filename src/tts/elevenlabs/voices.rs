//! The list of voices: `GET /v1/voices`
//! (<https://elevenlabs.io/docs/api-reference/voices/search>).

use secrecy::SecretString;
use serde::Serialize;
use serde_json::Value;

use crate::net::http::{self, Endpoint, EndpointError, KeyHeader};

/// The longest list that is read, in bytes; each voice takes some kilobytes.
const MAX_BYTES: usize = 8 << 20;
/// Voices that are kept.
const MAX_VOICES: usize = 2_000;

/// A voice that can be spoken with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VoiceInfo {
    pub id: String,
    pub name: String,
    /// `premade`, `cloned`, …; empty when it is not told.
    pub category: String,
    /// Such as `accent: american`.
    pub labels: Vec<String>,
    /// A recording to listen to; empty when there is none.
    pub preview_url: String,
}

/// Why there is no list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VoicesError {
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    #[error("no HTTP client: {0}")]
    Client(String),
    #[error("{0}")]
    Failed(String),
    #[error("the answer is no list of voices")]
    Unreadable,
}

/// Asks for all voices of the account. `base_url` carries the version.
pub async fn list(base_url: &str, api_key: SecretString) -> Result<Vec<VoiceInfo>, VoicesError> {
    let endpoint = Endpoint::new(base_url, api_key, KeyHeader::Named("xi-api-key"))?;
    let client = http::client(std::time::Duration::from_secs(10)).map_err(VoicesError::Client)?;
    let request = client.get(endpoint.url(&["voices"])).headers(endpoint.headers().clone());
    let response = http::send(request.timeout(std::time::Duration::from_secs(30)))
        .await
        .map_err(|failure| VoicesError::Failed(endpoint.redact(&failure.to_string())))?;
    read(&http::read_bounded(response, MAX_BYTES).await).ok_or(VoicesError::Unreadable)
}

/// What is missing or of another type counts as not there; a voice without an id is passed over.
pub fn read(body: &[u8]) -> Option<Vec<VoiceInfo>> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let voices = body.get("voices")?.as_array()?;
    let text = |of: &Value, key: &str| of[key].as_str().unwrap_or_default().to_owned();
    let read = |voice: &Value| {
        let id = text(voice, "voice_id");
        let labels = voice["labels"].as_object().into_iter().flatten();
        (!id.is_empty()).then(|| VoiceInfo {
            id,
            name: text(voice, "name"),
            category: text(voice, "category"),
            labels: labels
                .filter_map(|(key, value)| Some(format!("{key}: {}", value.as_str()?)))
                .collect(),
            preview_url: text(voice, "preview_url"),
        })
    };
    Some(voices.iter().take(MAX_VOICES).filter_map(read).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn voices_are_read_with_their_labels() {
        let body = br#"{"voices":[
            {"voice_id":"EX","name":"Sarah","category":"premade","preview_url":"https://x/a.mp3",
             "labels":{"accent":"american","age":null}},
            {"name":"nobody"}, 7, {"voice_id":"B"}]}"#;
        let voices = read(body).unwrap();
        assert_eq!(voices.len(), 2);
        assert_eq!(
            (voices[0].name.as_str(), voices[0].labels.as_slice()),
            ("Sarah", &["accent: american".to_owned()][..])
        );
        assert_eq!(voices[1].id, "B");
        assert_eq!(read(b"[]"), None);
    }

    proptest! {
        #[test]
        fn no_body_can_hurt(body in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = read(&body);
        }
    }

    #[tokio::test]
    async fn the_double_lists_its_voice_and_wants_a_key() {
        let doubles = crate::doubles::serve(crate::doubles::Script::default()).await.unwrap();
        let voices = list(&doubles.base_url(), "key".into()).await.unwrap();
        assert_eq!(voices[0].name, "Buzz");
        let refused = list(&doubles.base_url(), "".into()).await.unwrap_err();
        assert!(refused.to_string().starts_with("HTTP 401"), "{refused}");
    }
}
