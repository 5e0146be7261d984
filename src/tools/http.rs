//! HTTP tools: an address with places for arguments, declared in the agent file.
//!
//! The model decides what stands in those places and nothing else: host, method, headers and secrets
//! are the file's. Addresses of the machine's own networks are refused, by number and by name, unless
//! the file allows them: a model that has been talked into it must not reach what its host can.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use http::{HeaderName, HeaderValue, Method};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use url::Url;

use super::{Call, ToolError};
use crate::net::http as net;

/// Headers of one tool.
const MAX_HEADERS: usize = 32;

/// A tool as the agent file declares it.
#[derive(Debug, Clone)]
pub struct HttpToolConfig {
    pub method: Method,
    /// With places for arguments, `{city}`, in path and query.
    pub url: String,
    /// Values may hold secrets.
    pub headers: Vec<(String, SecretString)>,
    /// Sends the arguments as a JSON body.
    pub sends_body: bool,
    pub max_bytes: usize,
    /// Addresses of private networks and of the machine itself are allowed.
    pub allow_private: bool,
}

/// A declaration that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HttpToolError {
    #[error("the address is no http(s) URL with a fixed host")]
    Url,
    #[error("the header `{0}` cannot be sent")]
    Header(String),
    #[error("no HTTP client: {0}")]
    Client(String),
}

/// An HTTP tool.
#[derive(Debug)]
pub struct HttpTool {
    config: HttpToolConfig,
    client: reqwest::Client,
    headers: http::HeaderMap,
}

impl HttpTool {
    pub fn new(config: HttpToolConfig) -> Result<Self, HttpToolError> {
        let fixed = Url::parse(&config.url.replace(['{', '}'], "x"));
        let host = config.url.split_once("://").map_or("", |(_, rest)| rest);
        let host = host.split(['/', '?', '#']).next().unwrap_or_default();
        let is_http = fixed.is_ok_and(|url| matches!(url.scheme(), "http" | "https"));
        if !is_http || host.is_empty() || host.contains(['{', '@']) {
            return Err(HttpToolError::Url);
        }
        let mut headers = http::HeaderMap::new();
        for (name, value) in config.headers.iter().take(MAX_HEADERS) {
            let wrong = || HttpToolError::Header(name.clone());
            let mut header = HeaderValue::from_str(value.expose_secret()).map_err(|_| wrong())?;
            header.set_sensitive(true);
            headers.insert(HeaderName::try_from(name).map_err(|_| wrong())?, header);
        }
        let client = net::builder(Duration::from_secs(2)).map_err(HttpToolError::Client)?;
        let client = if config.allow_private {
            client
        } else {
            client.dns_resolver(Arc::new(PublicOnly)).no_proxy()
        };
        let client = client.build().map_err(|error| HttpToolError::Client(error.to_string()))?;
        Ok(Self { config, client, headers })
    }

    /// The address with the arguments in their places, percent-encoded.
    fn url(&self, arguments: &Value) -> Result<Url, ToolError> {
        let text = fill(&self.config.url, arguments)?;
        let url = Url::parse(&text).map_err(|error| ToolError::Failed(error.to_string()))?;
        let literal = match url.host() {
            Some(url::Host::Ipv4(ip)) => Some(IpAddr::V4(ip)),
            Some(url::Host::Ipv6(ip)) => Some(IpAddr::V6(ip)),
            _ => None,
        };
        if !self.config.allow_private && literal.is_some_and(|ip| !is_public(ip)) {
            return Err(ToolError::Failed("the address is private".into()));
        }
        Ok(url)
    }

    fn redact(&self, text: String) -> String {
        super::redact(text, self.config.headers.iter().map(|(_, value)| value))
    }
}

#[async_trait::async_trait]
impl Call for HttpTool {
    async fn call(&self, arguments: &Value) -> Result<String, ToolError> {
        let request = self.client.request(self.config.method.clone(), self.url(arguments)?);
        let request = request.headers(self.headers.clone());
        let request = if self.config.sends_body { request.json(arguments) } else { request };
        let response = net::send(request)
            .await
            .map_err(|failure| ToolError::Failed(self.redact(failure.to_string())))?;
        let body = net::read_bounded(response, self.config.max_bytes).await;
        Ok(self.redact(String::from_utf8_lossy(&body).into_owned()))
    }
}

/// Puts arguments into their places; a missing one is nothing.
fn fill(template: &str, arguments: &Value) -> Result<String, ToolError> {
    let mut out = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        let Some((name, after)) = after.split_once('}') else { break };
        out.push_str(before);
        let value = match &arguments[name] {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            value @ (Value::Number(_) | Value::Bool(_)) => value.to_string(),
            _ => return Err(ToolError::Arguments(format!("`{name}` is no plain value"))),
        };
        // `.` and `..` would climb in the path.
        if matches!(value.as_str(), "." | "..") {
            return Err(ToolError::Arguments(format!("`{name}` is no name")));
        }
        out.extend(
            url::form_urlencoded::byte_serialize(value.as_bytes())
                .map(|part| if part == "+" { "%20" } else { part }),
        );
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

/// Whether an address belongs to the public internet (RFC 6890 and the registries after it).
pub fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            !(ip.is_private()
                || ip.is_loopback()
                || ip.is_link_local()
                || ip.is_unspecified()
                || ip.is_broadcast()
                || ip.is_multicast()
                || ip.is_documentation()
                || a == 0
                || a >= 240
                || (a == 100 && (64..128).contains(&b))
                || (a == 198 && (18..20).contains(&b))
                || (a == 192 && b == 0 && c == 0))
        }
        IpAddr::V6(ip) => {
            // What carries an IPv4 address is as public as that.
            let segments = ip.segments();
            let embedded = ip.to_ipv4_mapped().or_else(|| {
                let [.., high, low] = segments;
                let is_nat64 = segments[..6] == [0x64, 0xff9b, 0, 0, 0, 0];
                let [a, b] = high.to_be_bytes();
                let [c, d] = low.to_be_bytes();
                is_nat64.then(|| std::net::Ipv4Addr::new(a, b, c, d))
            });
            if let Some(ip) = embedded {
                return is_public(IpAddr::V4(ip));
            }
            // 2000::/3 is all that is given out, less documentation and 6to4.
            (segments[0] & 0xe000) == 0x2000
                && !(segments[0] == 0x2001 && segments[1] == 0xdb8)
                && segments[0] != 0x2002
        }
    }
}

/// Finds public addresses alone, whatever the name server says: also one that changes its mind.
#[derive(Debug)]
struct PublicOnly;

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let public: Vec<SocketAddr> = found.filter(|at| is_public(at.ip())).collect();
            if public.is_empty() {
                return Err("the address is private".into());
            }
            let addresses: Addrs = Box::new(public.into_iter());
            Ok(addresses)
        })
    }
}

#[cfg(test)]
mod tests {
    use axum::{Router, extract::RawQuery, http::HeaderMap, routing::any};
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn config(url: &str) -> HttpToolConfig {
        HttpToolConfig {
            method: Method::GET,
            url: url.into(),
            headers: vec![("authorization".into(), "Bearer hush-hush".into())],
            sends_body: false,
            max_bytes: 64,
            allow_private: false,
        }
    }

    async fn serve() -> String {
        let router = Router::new()
            .route(
                "/weather/{city}",
                any(|headers: HeaderMap, RawQuery(query): RawQuery, body: String| async move {
                    let key = headers["authorization"].to_str().unwrap().to_owned();
                    format!("{key} {} {body}", query.unwrap_or_default())
                }),
            )
            .route("/long", any(|| async { "x".repeat(10_000) }))
            .route("/away", any(|| async { axum::response::Redirect::temporary("/long") }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        base
    }

    #[tokio::test]
    async fn arguments_are_put_in_their_places_and_secrets_stay_hidden() {
        let base = serve().await;
        let allowed = HttpToolConfig {
            allow_private: true,
            ..config(&format!("{base}/weather/{{city}}?d={{day}}"))
        };
        assert!(!format!("{allowed:?}").contains("hush"));
        let tool = HttpTool::new(allowed).unwrap();
        let said = tool.call(&json!({"city": "Ulm/..", "day": "a b&c"})).await.unwrap();
        assert_eq!(said, "*** d=a%20b%26c ");
        let long = HttpToolConfig { allow_private: true, ..config(&format!("{base}/long")) };
        assert_eq!(HttpTool::new(long).unwrap().call(&json!({})).await.unwrap().len(), 64);
    }

    #[tokio::test]
    async fn a_redirect_is_not_followed() {
        let away = format!("{}/away", serve().await);
        let tool = HttpTool::new(HttpToolConfig { allow_private: true, ..config(&away) }).unwrap();
        let error = tool.call(&json!({})).await.unwrap_err().to_string();
        assert!(error.contains("307"), "{error}");
    }

    #[tokio::test]
    async fn private_addresses_are_refused_by_number_and_by_name() {
        for url in ["http://127.0.0.1:9/", "http://[::1]/", "http://169.254.169.254/latest"] {
            let error = HttpTool::new(config(url)).unwrap().call(&json!({})).await.unwrap_err();
            assert_eq!(error, ToolError::Failed("the address is private".into()), "{url}");
        }
        let named = HttpTool::new(config("http://localhost:9/")).unwrap();
        let error = named.call(&json!({})).await.unwrap_err().to_string();
        assert!(error.contains("private"), "{error}");
    }

    #[test]
    fn the_host_cannot_be_an_argument() {
        for url in ["http://{host}/", "https://a@b/", "ftp://host/", "nonsense"] {
            assert_eq!(HttpTool::new(config(url)).unwrap_err(), HttpToolError::Url, "{url}");
        }
    }

    #[test]
    fn the_networks_of_the_machine_are_not_public() {
        for ip in [
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "127.0.0.1",
            "169.254.169.254",
            "0.0.0.0",
            "100.64.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "192.0.0.8",
            "198.18.0.1",
            "::1",
            "::",
            "fe80::1",
            "fc00::1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "2001:db8::1",
            "2002:a00::1",
        ] {
            assert!(!is_public(ip.parse().unwrap()), "{ip}");
        }
        for ip in ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:1.1.1.1"] {
            assert!(is_public(ip.parse().unwrap()), "{ip}");
        }
    }

    proptest! {
        #[test]
        fn no_argument_leaves_its_place(city in "\\PC{0,20}", day in "\\PC{0,20}") {
            let template = "https://host.example/weather/{city}/x?d={day}";
            if let Ok(text) = fill(template, &json!({"city": city, "day": day})) {
                let url = Url::parse(&text).unwrap();
                prop_assert_eq!(url.host_str(), Some("host.example"));
                prop_assert!(url.path().starts_with("/weather/") && url.path().ends_with("/x"));
                prop_assert_eq!(url.query_pairs().count(), 1);
                prop_assert!(url.fragment().is_none());
            }
        }
    }
}
