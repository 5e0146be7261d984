//! Tools that act on the call itself, and those that come with antiphon.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{
    Call, Tool, ToolError,
    knowledge::{Index, SearchKnowledge},
    telephone::{Destination, SendDtmf, Telephone, Transfer},
};
use crate::{llm::model::ToolSpec, session::ports::RoomEvent};

/// Names of the built-ins that an agent file may ask for.
pub const NAMES: [&str; 4] = ["end_call", "search_knowledge", "send_dtmf", "transfer"];

/// The session's own events and its telephone, once it has begun.
#[derive(Debug, Clone, Default)]
pub struct RoomHandle(Arc<Bound>);

#[derive(Debug, Default)]
struct Bound {
    events: OnceLock<mpsc::WeakSender<RoomEvent>>,
    telephone: OnceLock<Arc<dyn Telephone>>,
}

impl RoomHandle {
    /// The session takes its events from this channel, which is not kept open by the handle.
    pub fn bind(&self, room: &mpsc::Sender<RoomEvent>) {
        // A session begins once.
        let _ = self.0.events.set(room.downgrade());
    }

    /// The session can reach the telephone network; it must not keep the room open.
    pub fn bind_telephone(&self, telephone: Arc<dyn Telephone>) {
        let _ = self.0.telephone.set(telephone);
    }

    /// Lets another of the session's agents go on.
    ///
    /// # Errors
    /// When the session has ended.
    pub(super) async fn hand_over(&self, to: &str, keeps_history: bool) -> Result<(), ToolError> {
        self.tell(RoomEvent::HandOver { to: to.to_owned(), keeps_history }).await
    }

    async fn tell(&self, event: RoomEvent) -> Result<(), ToolError> {
        let over = || ToolError::Failed("the call is over".into());
        let room = self.0.events.get().and_then(mpsc::WeakSender::upgrade);
        room.ok_or_else(over)?.send(event).await.map_err(|_| over())
    }

    /// # Errors
    /// When the session runs where there is no telephone.
    pub(super) fn telephone(&self) -> Result<&Arc<dyn Telephone>, ToolError> {
        let telephone = self.0.telephone.get();
        telephone.ok_or_else(|| ToolError::Failed("this is not a telephone call".into()))
    }
}

/// What the built-ins of an agent work with.
#[derive(Debug, Clone, Default)]
pub struct Builtins {
    pub names: Vec<String>,
    /// Where calls may be transferred, by names for the model.
    pub destinations: Arc<BTreeMap<String, Destination>>,
    /// Offered wherever it is there.
    pub knowledge: Option<Arc<Index>>,
}

impl Builtins {
    /// The tools of one session.
    pub fn tools(&self, room: &RoomHandle) -> Vec<Tool> {
        let has = |name: &str| self.names.iter().any(|of| of == name);
        let mut tools = Vec::new();
        if has("end_call") {
            tools.push(end_call(room));
        }
        if has("send_dtmf") {
            tools.push(SendDtmf::tool(room.clone()));
        }
        if has("transfer") && !self.destinations.is_empty() {
            tools.push(Transfer::tool(room.clone(), self.destinations.clone()));
        }
        tools.extend(self.knowledge.clone().map(SearchKnowledge::tool));
        tools
    }
}

/// Ends the call gracefully: what is being said is said to its end, then the farewell.
#[derive(Debug)]
struct EndCall(RoomHandle);

#[async_trait::async_trait]
impl Call for EndCall {
    async fn call(&self, _: &Value) -> Result<String, ToolError> {
        self.0.tell(RoomEvent::Drain).await?;
        Ok("The call ends now.".into())
    }
}

fn end_call(room: &RoomHandle) -> Tool {
    Tool {
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
        waits_for_speech: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(builtins: &Builtins) -> Vec<String> {
        let tools = builtins.tools(&RoomHandle::default());
        tools.into_iter().map(|tool| tool.spec.name).collect()
    }

    #[tokio::test]
    async fn ending_the_call_drains_the_session() {
        let (room, mut events) = mpsc::channel(1);
        let handle = RoomHandle::default();
        let tool = end_call(&handle);
        assert!(tool.run.call(&json!({})).await.is_err(), "the session has not begun");
        handle.bind(&room);
        assert!(tool.run.call(&json!({})).await.is_ok());
        assert!(matches!(events.recv().await, Some(RoomEvent::Drain)));
        drop((room, events));
        assert!(tool.run.call(&json!({})).await.is_err());
    }

    #[test]
    fn what_needs_something_is_offered_when_that_is_there() {
        let all = NAMES.map(str::to_owned).to_vec();
        let mut builtins = Builtins { names: all, ..Builtins::default() };
        assert_eq!(names(&builtins), ["end_call", "send_dtmf"]);
        builtins.destinations = Arc::new(BTreeMap::from([(
            "sales".into(),
            Destination::Address("tel:+15550100".into()),
        )]));
        builtins.knowledge = Some(Arc::default());
        assert_eq!(names(&builtins), ["end_call", "send_dtmf", "transfer", "search_knowledge"]);
        builtins.names.clear();
        assert_eq!(names(&builtins), ["search_knowledge"]);
    }
}
