//! Tools for calls that come over SIP: `transfer` and `send_dtmf`.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_json::{Value, json};

use super::{Call, Tool, ToolError, builtin::RoomHandle};
use crate::llm::model::ToolSpec;

/// How long the other end may ring.
pub const RINGING: Duration = Duration::from_secs(25);
/// Keys of one call of the tool.
const MAX_KEYS: usize = 32;

/// A telephone key and its event code (RFC 4733 §3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    pub digit: char,
    pub code: u32,
}

impl Key {
    /// `0` to `9`, `*`, `#`, `A` to `D`.
    pub fn new(digit: char) -> Option<Self> {
        let digit = digit.to_ascii_uppercase();
        let code = match digit {
            '0'..='9' => digit.to_digit(10)?,
            '*' => 10,
            '#' => 11,
            'A'..='D' => digit.to_digit(16)? + 2,
            _ => return None,
        };
        Some(Self { digit, code })
    }
}

/// The way from a session to the telephone network.
#[async_trait::async_trait]
pub trait Telephone: Send + Sync + std::fmt::Debug {
    /// Hands the caller over to a `tel:` or `sip:` address, and returns when that has answered. The
    /// caller has left the room then.
    ///
    /// # Errors
    /// Why the caller is still here, in words for the model.
    async fn transfer(&self, to: &str) -> Result<(), ToolError>;

    /// Sends the keys as tones, one after the other.
    ///
    /// # Errors
    /// Why they did not go, in words for the model.
    async fn send_keys(&self, keys: &[Key]) -> Result<(), ToolError>;
}

/// Where a call may go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// `tel:` or `sip:`
    Address(String),
    /// Another agent file, which goes on in the same room.
    Agent { name: String, keeps_history: bool },
}

/// Transfers the caller to one of the places that the agent file names. The model never sees or
/// makes an address.
#[derive(Debug)]
pub struct Transfer {
    room: RoomHandle,
    destinations: Arc<BTreeMap<String, Destination>>,
}

impl Transfer {
    pub fn tool(room: RoomHandle, destinations: Arc<BTreeMap<String, Destination>>) -> Tool {
        let names: Vec<&String> = destinations.keys().collect();
        let parameters = json!({
            "type": "object",
            "properties": {"to": {"type": "string", "enum": names}},
            "required": ["to"],
        });
        Tool {
            spec: ToolSpec {
                name: "transfer".into(),
                description: "Transfers the caller to somebody else and ends your part of the \
                              call. Tell the caller first."
                    .into(),
                parameters,
            },
            run: Arc::new(Self { room, destinations }),
            timeout: RINGING + Duration::from_secs(5),
            outlives_interruption: true,
            waits_for_speech: true,
        }
    }
}

#[async_trait::async_trait]
impl Call for Transfer {
    async fn call(&self, arguments: &Value) -> Result<String, ToolError> {
        let name = arguments["to"].as_str().unwrap_or_default();
        let to = self.destinations.get(name);
        let to = to.ok_or_else(|| ToolError::Arguments("`to` is no known place".into()))?;
        match to {
            Destination::Address(to) => self.room.telephone()?.transfer(to).await?,
            Destination::Agent { name, keeps_history } => {
                self.room.hand_over(name, *keeps_history).await?;
            }
        }
        Ok("The caller has been transferred.".into())
    }
}

/// Presses telephone keys, for the menus of those who are called.
#[derive(Debug)]
pub struct SendDtmf(RoomHandle);

impl SendDtmf {
    pub fn tool(room: RoomHandle) -> Tool {
        let parameters = json!({
            "type": "object",
            "properties": {"digits": {
                "type": "string",
                "minLength": 1,
                "maxLength": MAX_KEYS,
                "description": "Keys in order: 0-9, *, #, A-D",
            }},
            "required": ["digits"],
        });
        Tool {
            spec: ToolSpec {
                name: "send_dtmf".into(),
                description: "Presses keys of the telephone, as menus ask for.".into(),
                parameters,
            },
            run: Arc::new(Self(room)),
            timeout: Duration::from_secs(15),
            outlives_interruption: false,
            waits_for_speech: false,
        }
    }
}

#[async_trait::async_trait]
impl Call for SendDtmf {
    async fn call(&self, arguments: &Value) -> Result<String, ToolError> {
        let digits = arguments["digits"].as_str().unwrap_or_default();
        // Models write numbers as people do.
        let digits = digits.chars().filter(|digit| !matches!(digit, ' ' | '-'));
        let keys: Option<Vec<Key>> = digits.map(Key::new).collect();
        let keys = keys.filter(|keys| (1..=MAX_KEYS).contains(&keys.len())).ok_or_else(|| {
            ToolError::Arguments("`digits` must be keys of a telephone: 0-9, *, #, A-D".into())
        })?;
        self.0.telephone()?.send_keys(&keys).await?;
        Ok("The keys have been pressed.".into())
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;
    use crate::{
        llm::model::{ToolCall, ToolResult},
        session::ports::RoomEvent,
        tools::Toolbox,
    };

    #[derive(Debug, Default)]
    struct Line(Mutex<Vec<String>>);

    #[async_trait::async_trait]
    impl Telephone for Line {
        async fn transfer(&self, to: &str) -> Result<(), ToolError> {
            self.0.lock().push(to.to_owned());
            Ok(())
        }

        async fn send_keys(&self, keys: &[Key]) -> Result<(), ToolError> {
            self.0.lock().extend(keys.iter().map(|key| format!("{}={}", key.digit, key.code)));
            Ok(())
        }
    }

    async fn run(room: &RoomHandle, name: &str, arguments: Value) -> ToolResult {
        let billing = Destination::Agent { name: "billing".into(), keeps_history: true };
        let places = BTreeMap::from([
            ("sales".to_owned(), Destination::Address("tel:+15550100".into())),
            ("billing".to_owned(), billing),
        ]);
        let tools =
            vec![Transfer::tool(room.clone(), Arc::new(places)), SendDtmf::tool(room.clone())];
        let call = ToolCall {
            id: "1".into(),
            name: name.into(),
            arguments: arguments.to_string(),
            signature: None,
        };
        Toolbox::new(tools).offered().run(&call).await
    }

    #[tokio::test]
    async fn keys_are_pressed_in_order_and_nothing_else_is_sent() {
        let (room, line) = (RoomHandle::default(), Arc::new(Line::default()));
        room.bind_telephone(line.clone());
        let pressed = run(&room, "send_dtmf", json!({"digits": "1-9 *#aD"})).await;
        assert!(!pressed.is_error, "{pressed:?}");
        assert_eq!(*line.0.lock(), ["1=1", "9=9", "*=10", "#=11", "A=12", "D=15"]);
        for wrong in ["", "-", "12x", "٣", &"1".repeat(33)] {
            assert!(run(&room, "send_dtmf", json!({"digits": wrong})).await.is_error, "{wrong}");
        }
        assert_eq!(line.0.lock().len(), 6);
    }

    #[tokio::test]
    async fn a_call_goes_to_named_places_alone() {
        let (room, line) = (RoomHandle::default(), Arc::new(Line::default()));
        room.bind_telephone(line.clone());
        assert!(run(&room, "transfer", json!({"to": "tel:+1900"})).await.is_error);
        let done = run(&room, "transfer", json!({"to": "sales"})).await;
        assert!(!done.is_error && !done.text.contains("555"), "{done:?}");
        assert_eq!(*line.0.lock(), ["tel:+15550100"]);
    }

    #[tokio::test]
    async fn another_agent_needs_no_telephone() {
        let (events, mut told) = tokio::sync::mpsc::channel(1);
        let room = RoomHandle::default();
        room.bind(&events);
        let done = run(&room, "transfer", json!({"to": "billing"})).await;
        assert!(!done.is_error, "{done:?}");
        let told = told.recv().await;
        let Some(RoomEvent::HandOver { to, keeps_history }) = told else { panic!("{told:?}") };
        assert_eq!((to.as_str(), keeps_history), ("billing", true));
    }

    #[tokio::test]
    async fn without_a_telephone_the_model_is_told_so() {
        let room = RoomHandle::default();
        for (name, arguments) in
            [("transfer", json!({"to": "sales"})), ("send_dtmf", json!({"digits": "1"}))]
        {
            let result = run(&room, name, arguments).await;
            assert!(result.is_error && result.text.contains("telephone"), "{result:?}");
        }
    }
}
