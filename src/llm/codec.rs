//! What the codecs of all models share.

use serde_json::Value;

use super::{model::ToolCall, sse::SseEvent, streaming::Trouble};
use crate::net::http::ServerError;

/// Calls in one answer; more are not kept.
pub const MAX_CALLS: usize = 32;
/// Longest arguments of one call, in bytes.
pub const MAX_ARGUMENTS: usize = 256 << 10;
/// What the user is taken to have said where a conversation must begin with them.
pub const OPENING: &str = "(The call begins.)";

/// A short decimal: 0.7, not 0.699999988079071.
pub fn rounded(value: f32) -> Value {
    ((f64::from(value) * 1_000.0).round() / 1_000.0).into()
}

/// Roles in turn, for providers that want them to alternate: what one role says in several steps
/// is put together, steps without content are left out.
pub fn alternating(
    steps: impl IntoIterator<Item = (&'static str, Vec<Value>)>,
) -> Vec<(&'static str, Vec<Value>)> {
    let mut turns: Vec<(&str, Vec<Value>)> = Vec::new();
    for (role, content) in steps {
        match turns.last_mut() {
            _ if content.is_empty() => {}
            Some((last, all)) if *last == role => all.extend(content),
            _ => turns.push((role, content)),
        }
    }
    turns
}

/// A chunk of a stream in which an error is a chunk with `error` in it.
pub fn chunk(event: &SseEvent) -> Result<Value, Trouble> {
    let chunk: Value = serde_json::from_str(&event.data).map_err(|_| Trouble::Unreadable)?;
    match chunk.get("error").filter(|error| !error.is_null()) {
        Some(error) => Err(Trouble::Server(ServerError::from_value(error))),
        None => Ok(chunk),
    }
}

/// Appends a piece of a call's arguments; beyond [`MAX_ARGUMENTS`] it is dropped.
pub fn append_arguments(call: &mut ToolCall, part: &str) {
    if call.arguments.len() + part.len() <= MAX_ARGUMENTS {
        call.arguments.push_str(part);
    }
}
