//! Tools that act on the call itself.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{Call, Tool, ToolError};
use crate::{llm::model::ToolSpec, session::ports::RoomEvent};

/// Names of the built-ins that an agent file may ask for.
pub const NAMES: [&str; 1] = ["end_call"];

/// The session's own events, once it has begun.
#[derive(Debug, Clone, Default)]
pub struct RoomHandle(Arc<OnceLock<mpsc::WeakSender<RoomEvent>>>);

impl RoomHandle {
    /// The session takes its events from this channel, which is not kept open by the handle.
    pub fn bind(&self, room: &mpsc::Sender<RoomEvent>) {
        // A session begins once.
        let _ = self.0.set(room.downgrade());
    }
}

/// Ends the call gracefully: what is being said is said to its end, then the farewell.
#[derive(Debug)]
struct EndCall(RoomHandle);

#[async_trait::async_trait]
impl Call for EndCall {
    async fn call(&self, _: &Value) -> Result<String, ToolError> {
        let room = self.0.0.get().and_then(mpsc::WeakSender::upgrade);
        let room = room.ok_or_else(|| ToolError::Failed("the call is over".into()))?;
        room.send(RoomEvent::Drain)
            .await
            .map_err(|_| ToolError::Failed("the call is over".into()))?;
        Ok("The call ends now.".into())
    }
}

/// A built-in by its name.
pub fn find(name: &str, room: &RoomHandle) -> Option<Tool> {
    (name == "end_call").then(|| Tool {
        spec: ToolSpec {
            name: "end_call".into(),
            description: "Ends the call. Use it when the user has said goodbye or wants to hang \
                          up."
            .into(),
            parameters: json!({"type": "object", "properties": {}}),
        },
        run: Arc::new(EndCall(room.clone())),
        timeout: Duration::from_secs(2),
        outlives_interruption: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ending_the_call_drains_the_session() {
        let (room, mut events) = mpsc::channel(1);
        let handle = RoomHandle::default();
        let tool = find("end_call", &handle).unwrap();
        assert!(tool.run.call(&json!({})).await.is_err(), "the session has not begun");
        handle.bind(&room);
        assert!(tool.run.call(&json!({})).await.is_ok());
        assert!(matches!(events.recv().await, Some(RoomEvent::Drain)));
        drop((room, events));
        assert!(tool.run.call(&json!({})).await.is_err());
    }
}
