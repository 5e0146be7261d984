//! One post to the control endpoint, and what its answer means for what was posted.

use std::time::Duration;

use async_trait::async_trait;
use reqwest::{
    StatusCode,
    header::{AUTHORIZATION, HeaderValue},
};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::wire::IngestRequest;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Committed.
    Accepted,
    /// Something in it will never be accepted.
    Refused { status: u16 },
    /// This worker may not report here, or nobody listens at this address.
    Denied { status: u16 },
    /// Later, perhaps.
    Failed { why: String },
}

#[async_trait]
pub trait Post: std::fmt::Debug + Send + Sync + 'static {
    async fn post(&self, request: &IngestRequest) -> Answer;
}

#[derive(Debug)]
pub struct HttpPost {
    client: reqwest::Client,
    url: Url,
    authorization: Option<HeaderValue>,
}

impl HttpPost {
    /// `control_url` without `/api/ingest`. An error means that the token is no header value or
    /// that TLS cannot be set up.
    pub fn new(control_url: &Url, token: Option<&SecretString>) -> Result<Self, String> {
        // Several rustls providers are linked in, so rustls cannot choose by itself. An error means
        // that one is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| error.to_string())?;
        let mut url = control_url.clone();
        let path = format!("{}/api/ingest", url.path().trim_end_matches('/'));
        url.set_path(&path);
        url.set_query(None);
        let authorization = token
            .map(|token| {
                let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose_secret()))
                    .map_err(|_| "the control token has characters that no header may have")?;
                value.set_sensitive(true);
                Ok::<_, String>(value)
            })
            .transpose()?;
        Ok(Self { client, url, authorization })
    }
}

#[async_trait]
impl Post for HttpPost {
    async fn post(&self, request: &IngestRequest) -> Answer {
        let mut builder = self.client.post(self.url.clone()).json(request);
        if let Some(authorization) = &self.authorization {
            builder = builder.header(AUTHORIZATION, authorization.clone());
        }
        match builder.send().await {
            Ok(response) => judge(response.status()),
            // Without the URL: it may hold a password.
            Err(error) => Answer::Failed { why: chain(&error.without_url()) },
        }
    }
}

fn judge(status: StatusCode) -> Answer {
    let code = status.as_u16();
    match code {
        200..=299 => Answer::Accepted,
        400 | 413 | 422 => Answer::Refused { status: code },
        408 | 425 | 429 => Answer::Failed { why: format!("HTTP {code}") },
        300..=499 => Answer::Denied { status: code },
        _ => Answer::Failed { why: format!("HTTP {code}") },
    }
}

/// reqwest names the cause in the sources only.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_whether_the_records_or_the_moment_were_wrong() {
        let judged = |code| judge(StatusCode::from_u16(code).unwrap());
        assert_eq!(judged(200), Answer::Accepted);
        assert_eq!(judged(400), Answer::Refused { status: 400 });
        assert_eq!(judged(401), Answer::Denied { status: 401 });
        assert_eq!(judged(404), Answer::Denied { status: 404 });
        assert!(matches!(judged(429), Answer::Failed { .. }));
        assert!(matches!(judged(503), Answer::Failed { .. }));
    }

    #[test]
    fn the_path_of_the_control_url_is_kept() {
        let url = |text: &str| HttpPost::new(&Url::parse(text).unwrap(), None).unwrap().url;
        assert_eq!(url("http://host:1").as_str(), "http://host:1/api/ingest");
        assert_eq!(url("http://host:1/voice/?x=1").as_str(), "http://host:1/voice/api/ingest");
    }

    #[test]
    fn the_token_is_not_in_the_debug_output() {
        let token = SecretString::from("very-secret-token");
        let post = HttpPost::new(&Url::parse("http://host:1").unwrap(), Some(&token)).unwrap();
        assert!(!format!("{post:?}").contains("very-secret"));
        let broken = SecretString::from("very-secret\ntoken");
        let error = HttpPost::new(&Url::parse("http://host:1").unwrap(), Some(&broken));
        assert!(!error.unwrap_err().contains("very-secret"));
    }
}
