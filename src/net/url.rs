//! Provider URLs: a base that carries the API version, and what is joined to it.

use url::Url;

/// Why a base URL cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BaseUrlError {
    #[error("not a URL: {0}")]
    Syntax(#[from] url::ParseError),
    #[error("the scheme must be http, https, ws or wss")]
    Scheme,
    #[error("a host is missing")]
    Host,
    #[error("user name and password do not belong in a base URL")]
    Credentials,
}

/// Checks a base URL as given in `*_BASE_URL`, such as `https://api.deepgram.com/v1`.
pub fn parse_base(text: &str) -> Result<Url, BaseUrlError> {
    let url = Url::parse(text.trim())?;
    if !matches!(url.scheme(), "http" | "https" | "ws" | "wss") {
        return Err(BaseUrlError::Scheme);
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(BaseUrlError::Host);
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(BaseUrlError::Credentials);
    }
    Ok(url)
}

/// The base for a WebSocket: http(s) becomes ws(s), and `segments` follow the base's path, each
/// percent-encoded as one segment. The base's query and fragment are dropped.
pub fn socket(base: &Url, segments: &[&str]) -> Url {
    let mut url = joined(base, segments);
    let scheme = if matches!(base.scheme(), "https" | "wss") { "wss" } else { "ws" };
    // Cannot fail between http, https, ws and wss; any other base is refused by the connection.
    let _ = url.set_scheme(scheme);
    url
}

/// The base for a request: ws(s) becomes http(s); otherwise as [`socket`].
pub fn request(base: &Url, segments: &[&str]) -> Url {
    let mut url = joined(base, segments);
    let scheme = if matches!(base.scheme(), "https" | "wss") { "https" } else { "http" };
    let _ = url.set_scheme(scheme);
    url
}

/// The base with another version in the place of its last segment: `…/v1` becomes `…/v2`.
pub fn with_version(base: &Url, version: &str) -> Url {
    let mut url = base.clone();
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().pop().push(version);
    }
    url
}

fn joined(base: &Url, segments: &[&str]) -> Url {
    let mut url = base.clone();
    url.set_query(None);
    url.set_fragment(None);
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(segments);
    }
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(text: &str) -> Url {
        parse_base(text).unwrap()
    }

    #[test]
    fn a_path_follows_the_version() {
        for text in ["http://127.0.0.1:9100/v1", "http://127.0.0.1:9100/v1/"] {
            assert_eq!(socket(&base(text), &["listen"]).as_str(), "ws://127.0.0.1:9100/v1/listen");
        }
        assert_eq!(
            request(&base("wss://host/v1"), &["audio", "speech"]).as_str(),
            "https://host/v1/audio/speech"
        );
        assert_eq!(socket(&base("https://host"), &["listen"]).as_str(), "wss://host/listen");
    }

    #[test]
    fn the_version_is_the_last_segment() {
        let v2 = |text: &str| with_version(&base(text), "v2").to_string();
        assert_eq!(v2("https://host/v1"), "https://host/v2");
        assert_eq!(v2("https://host/api/v1/"), "https://host/api/v2");
    }

    #[test]
    fn a_segment_cannot_leave_its_place() {
        let url = socket(&base("https://host/v1"), &["text-to-speech", "a/../b?c", "stream"]);
        assert_eq!(url.as_str(), "wss://host/v1/text-to-speech/a%2F..%2Fb%3Fc/stream");
    }

    #[test]
    fn what_is_no_base_url_is_refused() {
        assert_eq!(parse_base("ftp://host/v1"), Err(BaseUrlError::Scheme));
        assert_eq!(parse_base("https://user:secret@host/v1"), Err(BaseUrlError::Credentials));
        assert!(matches!(parse_base("host"), Err(BaseUrlError::Syntax(_))));
    }
}
