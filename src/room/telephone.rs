//! A room's way to the telephone network: its SIP participant.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use livekit::{
    SipDTMF,
    participant::ParticipantKind,
    prelude::{ParticipantIdentity, Room},
};
use livekit_api::services::{
    ServerError, ServiceError,
    sip::{SIPClient, TransferSIPParticipantOptions},
};
use secrecy::ExposeSecret;
use tracing::{info, warn};

use crate::{
    config::env::LiveKitAccess,
    tools::{
        ToolError,
        telephone::{Key, RINGING, Telephone},
    },
};

/// From one key to the next: the tone itself and the pause after it, as menus can tell them apart.
const KEY_PACE: Duration = Duration::from_millis(300);

/// The SIP participant of a room that may be gone.
#[derive(Debug)]
pub struct RoomTelephone {
    room: Weak<Room>,
    /// The participant that the job is for.
    wanted: Option<String>,
    /// Transfers are asked of the server.
    access: Option<Arc<LiveKitAccess>>,
}

impl RoomTelephone {
    pub fn new(
        room: &Arc<Room>,
        wanted: Option<String>,
        access: Option<Arc<LiveKitAccess>>,
    ) -> Self {
        Self { room: Arc::downgrade(room), wanted, access }
    }

    fn room(&self) -> Result<Arc<Room>, ToolError> {
        self.room.upgrade().ok_or_else(|| ToolError::Failed("the call is over".into()))
    }

    /// Who is on the telephone: whom the job is for, else who came first.
    fn caller(&self, room: &Room) -> Result<ParticipantIdentity, ToolError> {
        let people = room.remote_participants().into_values();
        let callers = people.filter(|participant| participant.kind() == ParticipantKind::Sip);
        let first = callers.min_by_key(|participant| {
            (Some(participant.identity().0) != self.wanted, participant.joined_at())
        });
        first.map(|participant| participant.identity()).ok_or_else(|| {
            ToolError::Failed("this is not a telephone call: nobody is here over SIP".into())
        })
    }
}

#[async_trait::async_trait]
impl Telephone for RoomTelephone {
    async fn transfer(&self, to: &str) -> Result<(), ToolError> {
        let room = self.room()?;
        let caller = self.caller(&room)?;
        let access = self.access.as_ref();
        let access =
            access.ok_or_else(|| ToolError::Failed("calls cannot be transferred here".into()))?;
        refer(access, room.name(), caller.0, to.to_owned()).await
    }

    async fn send_keys(&self, keys: &[Key]) -> Result<(), ToolError> {
        for (nth, key) in keys.iter().enumerate() {
            if nth > 0 {
                tokio::time::sleep(KEY_PACE).await;
            }
            let room = self.room()?;
            let caller = self.caller(&room)?;
            let tone = SipDTMF {
                code: key.code,
                digit: key.digit.to_string(),
                destination_identities: vec![caller],
            };
            room.local_participant().publish_dtmf(tone).await.map_err(|error| {
                warn!(%error, "a telephone key could not be sent");
                ToolError::Failed("the keys could not be sent".into())
            })?;
        }
        Ok(())
    }
}

/// Asks the server to hand the caller over (SIP REFER), and waits until the other end has answered.
async fn refer(
    access: &LiveKitAccess,
    room: String,
    caller: String,
    to: String,
) -> Result<(), ToolError> {
    let secret = access.api_secret.expose_secret();
    let client = SIPClient::with_api_key(&access.http_url(), &access.api_key, secret);
    let options = TransferSIPParticipantOptions {
        ringing_timeout: Some(RINGING),
        ..TransferSIPParticipantOptions::default()
    };
    match client.transfer_sip_participant(room, caller, to, options).await {
        Ok(()) => {
            info!("the caller has been transferred");
            Ok(())
        }
        Err(error) => {
            // The server's message may have the number in it.
            let code = code_of(&error);
            warn!(code, "a transfer has failed");
            Err(ToolError::Failed(format!(
                "the transfer failed ({code}); the caller is still here"
            )))
        }
    }
}

fn code_of(error: &ServiceError) -> &str {
    match error {
        ServiceError::Twirp(ServerError::Twirp(error)) => &error.code,
        ServiceError::Twirp(ServerError::Request(error)) if error.is_timeout() => "no answer",
        ServiceError::Twirp(_) => "the server cannot be reached",
        _ => "no access",
    }
}

#[cfg(test)]
mod tests {
    use axum::{Router, body::Bytes, http::StatusCode, routing::post};
    use livekit_protocol as proto;
    use prost::Message;
    use tokio::sync::mpsc;

    use super::*;

    async fn double(
        status: StatusCode,
        body: &'static str,
    ) -> (LiveKitAccess, mpsc::Receiver<proto::TransferSipParticipantRequest>) {
        let (sender, requests) = mpsc::channel(4);
        let answer = move |request: Bytes| {
            let sender = sender.clone();
            async move {
                let request = proto::TransferSipParticipantRequest::decode(request).unwrap();
                sender.send(request).await.unwrap();
                (status, [("content-type", "application/json")], body)
            }
        };
        let app = Router::new().route("/twirp/livekit.SIP/TransferSIPParticipant", post(answer));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        let access = LiveKitAccess {
            url: url.parse().unwrap(),
            api_key: "key".into(),
            api_secret: "secret-secret-secret-secret-secret".into(),
        };
        (access, requests)
    }

    async fn transfer(access: &LiveKitAccess) -> Result<(), ToolError> {
        refer(access, "r".into(), "caller".into(), "tel:+15550100".into()).await
    }

    #[tokio::test]
    async fn the_server_is_asked_to_hand_the_caller_over() {
        let (access, mut requests) = double(StatusCode::OK, "").await;
        assert_eq!(transfer(&access).await, Ok(()));
        let asked = requests.recv().await.unwrap();
        assert_eq!(
            (&*asked.room_name, &*asked.participant_identity, &*asked.transfer_to),
            ("r", "caller", "tel:+15550100")
        );
    }

    #[tokio::test]
    async fn a_transfer_that_fails_is_told_without_the_number() {
        let body = r#"{"code": "not_found", "msg": "no route to +15550100", "meta": {}}"#;
        let (access, _requests) = double(StatusCode::NOT_FOUND, body).await;
        let error = transfer(&access).await.unwrap_err().to_string();
        assert!(error.contains("not_found") && !error.contains("555"), "{error}");
    }
}
