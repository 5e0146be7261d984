//! URLs of STUN and TURN servers (RFC 7064 §3, RFC 7065 §3).

use thiserror::Error;

/// Default port without TLS (RFC 8489 §18.6, RFC 8656 §18).
const PORT: u16 = 3_478;
/// Default port with TLS.
const TLS_PORT: u16 = 5_349;
/// The longest name of a host (RFC 1035 §2.3.4).
const MAX_HOST: usize = 255;

/// What a server is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ServerKind {
    /// Tells the address that others see.
    Stun,
    /// Relays.
    Turn,
}

/// How a server is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ServerTransport {
    /// Datagrams.
    Udp,
    /// A stream.
    Tcp,
    /// A stream within TLS.
    Tls,
}

/// A server as a URL names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServerUrl {
    /// What it is for.
    pub kind: ServerKind,
    /// How it is spoken to.
    pub transport: ServerTransport,
    /// A name or an address, IPv6 without its brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
}

/// Why a URL is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ServerUrlError {
    /// The scheme is none of the four.
    #[error("the URL begins with none of stun:, stuns:, turn: and turns:")]
    Scheme,
    /// There is no host, or it is no host.
    #[error("the URL names no host")]
    Host,
    /// The port is no port.
    #[error("the URL's port is no number from 1 to 65535")]
    Port,
    /// What follows `?` is not `transport=udp` or `transport=tcp`, or does not fit the scheme.
    #[error("the URL's transport is neither udp nor tcp, or does not go with its scheme")]
    Transport,
}

impl ServerUrl {
    /// Reads `stun:host[:port]`, `stuns:…`, `turn:host[:port][?transport=udp|tcp]`, `turns:…`.
    pub fn parse(url: &str) -> Result<Self, ServerUrlError> {
        let (scheme, rest) = url.trim().split_once(':').ok_or(ServerUrlError::Scheme)?;
        let (kind, tls) = match scheme.to_ascii_lowercase().as_str() {
            "stun" => (ServerKind::Stun, false),
            "stuns" => (ServerKind::Stun, true),
            "turn" => (ServerKind::Turn, false),
            "turns" => (ServerKind::Turn, true),
            _ => return Err(ServerUrlError::Scheme),
        };
        let (place, query) = match rest.split_once('?') {
            Some((place, query)) => (place, Some(query)),
            None => (rest, None),
        };
        let transport = match (query, tls, kind) {
            (None | Some("transport=udp"), false, _) => ServerTransport::Udp,
            (None | Some("transport=tcp"), true, _) => ServerTransport::Tls,
            (Some("transport=tcp"), false, ServerKind::Turn) => ServerTransport::Tcp,
            _ => return Err(ServerUrlError::Transport),
        };
        let (host, port) = split_port(place)?;
        let named = host.chars().all(|c| c.is_ascii_alphanumeric() || "-._:".contains(c));
        if host.is_empty() || host.len() > MAX_HOST || !named {
            return Err(ServerUrlError::Host);
        }
        let default = if tls { TLS_PORT } else { PORT };
        Ok(Self { kind, transport, host: host.to_owned(), port: port.unwrap_or(default) })
    }
}

fn split_port(place: &str) -> Result<(&str, Option<u16>), ServerUrlError> {
    let (host, port) = if let Some(rest) = place.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or(ServerUrlError::Host)?;
        host.parse::<std::net::Ipv6Addr>().map_err(|_| ServerUrlError::Host)?;
        match after.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if after.is_empty() => (host, None),
            None => return Err(ServerUrlError::Host),
        }
    } else {
        match place.split_once(':') {
            // More than one colon without brackets is no port.
            Some((_, port)) if port.contains(':') => return Err(ServerUrlError::Host),
            Some((host, port)) => (host, Some(port)),
            None => (place, None),
        }
    };
    let port = match port.map(str::parse::<u16>) {
        None => None,
        Some(Ok(port)) if port != 0 => Some(port),
        Some(_) => return Err(ServerUrlError::Port),
    };
    Ok((host, port))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn url(kind: ServerKind, transport: ServerTransport, host: &str, port: u16) -> ServerUrl {
        ServerUrl { kind, transport, host: host.to_owned(), port }
    }

    #[test]
    fn every_form_of_the_two_rfcs_is_read() {
        use ServerKind::{Stun, Turn};
        use ServerTransport::{Tcp, Tls, Udp};
        for (text, expected) in [
            ("stun:example.org", url(Stun, Udp, "example.org", 3_478)),
            ("stun:example.org:8000", url(Stun, Udp, "example.org", 8_000)),
            ("stun:[2001:db8::1]:99", url(Stun, Udp, "2001:db8::1", 99)),
            ("stuns:example.org", url(Stun, Tls, "example.org", 5_349)),
            ("turn:example.org", url(Turn, Udp, "example.org", 3_478)),
            ("TURN:192.0.2.1:80?transport=udp", url(Turn, Udp, "192.0.2.1", 80)),
            ("turn:example.org?transport=tcp", url(Turn, Tcp, "example.org", 3_478)),
            ("turns:example.org:443?transport=tcp", url(Turn, Tls, "example.org", 443)),
            ("turns:[::1]", url(Turn, Tls, "::1", 5_349)),
        ] {
            assert_eq!(ServerUrl::parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_url_is_said() {
        for (text, expected) in [
            ("http:example.org", ServerUrlError::Scheme),
            ("example.org", ServerUrlError::Scheme),
            ("turn:", ServerUrlError::Host),
            ("turn:user@example.org", ServerUrlError::Host),
            ("turn:2001:db8::1", ServerUrlError::Host),
            ("turn:[example.org]", ServerUrlError::Host),
            ("turn:example.org:0", ServerUrlError::Port),
            ("turn:example.org:65536", ServerUrlError::Port),
            ("turn:example.org?transport=sctp", ServerUrlError::Transport),
            ("turns:example.org?transport=udp", ServerUrlError::Transport),
            ("stun:example.org?transport=tcp", ServerUrlError::Transport),
        ] {
            assert_eq!(ServerUrl::parse(text), Err(expected), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(stuns?:|turns?:)?[a-z0-9:.\\[\\]?=]{0,40}") {
            let _ = ServerUrl::parse(&text);
        }
    }
}
