//! `antiphon token`: a LiveKit token for a test caller.

use std::{
    io::{self, Write},
    time::Duration,
};

use livekit_api::access_token::{AccessToken, AccessTokenError, VideoGrants};
use livekit_protocol::{RoomAgentDispatch, RoomConfiguration};
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;

use crate::{
    clock,
    config::{ConfigErrors, Sources, env::Config},
};

/// Longer-lived tokens are refused: a leaked one could not be taken back.
const MAX_TTL: Duration = Duration::from_hours(30 * 24);

/// Makes a token with which a caller joins a room.
///
/// Needs LIVEKIT_API_KEY and LIVEKIT_API_SECRET; no server is asked. Prints the token alone.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:\n  \
    antiphon token --room demo --identity anna\n  \
    antiphon token --room demo --identity anna --agent antiphon    also sends the agent there\n  \
    antiphon token --room demo --identity anna --ttl 10m --json")]
pub struct TokenArgs {
    /// The room that the token opens
    #[arg(long, value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub room: String,
    /// The participant's identity, unique in the room
    #[arg(long, value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub identity: String,
    /// The participant's name as others see it
    #[arg(long)]
    pub name: Option<String>,
    /// How long the token is good for: 90s, 10m, 6h, 7d
    #[arg(long, default_value = "6h", value_parser = parse_ttl)]
    pub ttl: Duration,
    /// Dispatch the agent registered under this name when the room is made
    #[arg(long, value_name = "NAME")]
    pub agent: Option<String>,
    /// Print one JSON object: token, url, room, identity, expiresAt (ms since 1970)
    #[arg(long)]
    pub json: bool,
}

/// Prints the token to `out`, or all faults to `err`; returns the exit code.
///
/// # Errors
/// When `out` or `err` cannot be written.
pub fn run(
    args: &TokenArgs,
    sources: &Sources,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<u8> {
    let (config, faults) = Config::resolve(sources);
    let (api_key, api_secret) = match keys(&config, faults) {
        Ok(keys) => keys,
        Err(faults) => {
            err.write_all(faults.render(false).as_bytes())?;
            return Ok(2);
        }
    };
    let token = match mint(args, &api_key, &api_secret) {
        Ok(token) => token,
        Err(error) => {
            writeln!(err, "the token cannot be made: {error}")?;
            return Ok(2);
        }
    };
    if args.json {
        let url = config.livekit.url.as_ref().map(url::Url::as_str);
        let lifetime = i64::try_from(args.ttl.as_millis()).unwrap_or(i64::MAX);
        let answer = json!({
            "token": token,
            "url": url,
            "room": args.room,
            "identity": args.identity,
            "expiresAt": clock::unix_ms().saturating_add(lifetime),
        });
        writeln!(out, "{answer:#}")?;
    } else {
        writeln!(out, "{token}")?;
    }
    Ok(0)
}

/// The key and secret, or every fault but that of a missing URL: no server is asked.
fn keys(config: &Config, mut faults: ConfigErrors) -> Result<(String, SecretString), ConfigErrors> {
    let missing = config.require_livekit().err().into_iter().flatten();
    faults.extend(missing.filter(|fault| fault.key != "LIVEKIT_URL"));
    let livekit = &config.livekit;
    match (&livekit.api_key, &livekit.api_secret) {
        (Some(key), Some(secret)) if faults.is_empty() => Ok((key.clone(), secret.clone())),
        _ => Err(faults),
    }
}

fn mint(args: &TokenArgs, key: &str, secret: &SecretString) -> Result<String, AccessTokenError> {
    let grants = VideoGrants { room_join: true, room: args.room.clone(), ..VideoGrants::default() };
    let mut token = AccessToken::with_api_key(key, secret.expose_secret())
        .with_identity(&args.identity)
        .with_name(args.name.as_deref().unwrap_or(&args.identity))
        .with_ttl(args.ttl)
        .with_grants(grants);
    if let Some(agent) = &args.agent {
        let dispatch =
            RoomAgentDispatch { agent_name: agent.clone(), ..RoomAgentDispatch::default() };
        token = token.with_room_config(RoomConfiguration {
            agents: vec![dispatch],
            ..RoomConfiguration::default()
        });
    }
    token.to_jwt()
}

fn parse_ttl(text: &str) -> Result<Duration, String> {
    let unit_at = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let unit_seconds: u64 = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err("give a number with s, m, h or d, such as 6h".into()),
    };
    let number: u64 = number.parse().map_err(|_| "give a number, such as 6h".to_owned())?;
    let ttl = Duration::from_secs(number.saturating_mul(unit_seconds));
    if ttl.is_zero() || ttl > MAX_TTL {
        return Err("must be between 1s and 30d".into());
    }
    Ok(ttl)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use livekit_api::access_token::{Claims, TokenVerifier};

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        token: TokenArgs,
    }

    fn args(line: &str) -> Result<TokenArgs, clap::Error> {
        let words = std::iter::once("antiphon").chain(line.split_whitespace());
        Command::try_parse_from(words).map(|command| command.token)
    }

    fn printed(line: &str, vars: &[(&str, &str)]) -> (u8, String, String) {
        let vars = vars.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        let sources = Sources { vars, ..Sources::default() };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = run(&args(line).unwrap(), &sources, &mut out, &mut err).unwrap();
        (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
    }

    const KEYS: [(&str, &str); 2] = [("LIVEKIT_API_KEY", "key"), ("LIVEKIT_API_SECRET", "sesame")];

    fn verified(token: &str) -> Claims {
        TokenVerifier::with_api_key("key", "sesame").verify(token.trim()).unwrap()
    }

    #[test]
    fn the_token_opens_the_room_and_sends_the_agent() {
        let line = "--room r --identity i --name N --agent antiphon";
        let (code, token, _) = printed(line, &KEYS);
        let claims = verified(&token);
        assert_eq!(code, 0);
        assert_eq!((claims.sub.as_str(), claims.name.as_str()), ("i", "N"));
        assert!(claims.video.room_join && !claims.video.room_admin);
        assert_eq!(claims.video.room, "r");
        assert_eq!(claims.room_config.unwrap().agents[0].agent_name, "antiphon");
    }

    #[test]
    fn the_token_expires_as_asked() {
        let (_, text, _) = printed("--room r --identity i --ttl 10m --json", &KEYS);
        let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
        let claims = verified(answer["token"].as_str().unwrap());
        let lifetime = claims.exp as i64 - claims.nbf as i64;
        assert!((600..=602).contains(&lifetime), "{lifetime}");
        let expires = answer["expiresAt"].as_i64().unwrap() / 1_000;
        assert!((claims.exp as i64 - expires).abs() <= 2);
        assert_eq!(answer["url"], serde_json::Value::Null);
    }

    #[test]
    fn missing_keys_are_listed_at_once_on_the_error_side() {
        let (code, out, err) = printed("--room r --identity i", &[]);
        assert_eq!((code, out.as_str()), (2, ""));
        assert!(err.contains("LIVEKIT_API_KEY") && err.contains("LIVEKIT_API_SECRET"), "{err}");
        assert!(!err.contains("LIVEKIT_URL"), "{err}");
    }

    #[test]
    fn lifetimes_are_bounded_and_have_units() {
        assert_eq!(parse_ttl("90"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_ttl("6h"), Ok(Duration::from_hours(6)));
        for wrong in ["", "0s", "31d", "6w", "-1h", "99999999999999999999d", "h"] {
            assert!(parse_ttl(wrong).is_err(), "{wrong}");
        }
        assert!(args("--room r --identity i --ttl never").is_err());
        assert!(args("--room  --identity i").is_err());
    }
}
