//! A LiveKit server's room and dispatch services, as far as the control endpoint asks them: Twirp
//! over HTTP, protobuf bodies (<https://twitchtv.github.io/twirp/docs/spec_v7.html>).

use std::{collections::HashMap, sync::Arc};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::post,
};
use livekit_api::access_token::TokenVerifier;
use livekit_protocol as proto;
use parking_lot::Mutex;
use prost::Message;
use secrecy::SecretString;
use serde_json::json;
use tokio::sync::Notify;

use super::LiveKitConfig;

pub const KEY: &str = "test-key";
pub const SECRET: &str = "test-secret-test-secret-test-secret";

#[derive(Debug, Default)]
pub struct Rooms {
    pub created: Vec<proto::CreateRoomRequest>,
    pub dispatches: Vec<proto::AgentDispatch>,
    pub participants: HashMap<String, Vec<proto::ParticipantInfo>>,
    /// (room, agent, whether it hears)
    pub subscriptions: Vec<(String, String, bool)>,
    pub egresses: Vec<proto::RoomCompositeEgressRequest>,
    pub stopped: Vec<String>,
    /// Somebody was removed from a room.
    pub removed: Arc<Notify>,
}

impl Rooms {
    pub fn join(&mut self, room: &str, identity: &str, kind: proto::participant_info::Kind) {
        let info = proto::ParticipantInfo {
            identity: identity.into(),
            kind: kind.into(),
            state: proto::participant_info::State::Active.into(),
            ..Default::default()
        };
        self.participants.entry(room.into()).or_default().push(info);
    }
}

#[derive(Debug, Clone)]
pub struct LiveKitDouble {
    pub rooms: Arc<Mutex<Rooms>>,
    pub url: String,
}

impl LiveKitDouble {
    pub async fn start() -> Self {
        let rooms = Arc::new(Mutex::new(Rooms::default()));
        let app = Router::new()
            .route("/twirp/{service}/{method}", post(answer))
            .with_state(rooms.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { rooms, url }
    }

    pub fn config(&self) -> LiveKitConfig {
        LiveKitConfig {
            url: self.url.clone(),
            api_key: KEY.into(),
            api_secret: SecretString::from(SECRET),
        }
    }
}

async fn answer(
    State(rooms): State<Arc<Mutex<Rooms>>>,
    Path((service, method)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let token = headers["authorization"].to_str().unwrap().strip_prefix("Bearer ").unwrap();
    if TokenVerifier::with_api_key(KEY, SECRET).verify(token).is_err() {
        // In plain text, as the real one answers.
        return (StatusCode::UNAUTHORIZED, "invalid token").into_response();
    }
    let mut rooms = rooms.lock();
    match (service.as_str(), method.as_str()) {
        ("livekit.RoomService", "CreateRoom") => {
            let request = proto::CreateRoomRequest::decode(body).unwrap();
            let room = proto::Room { name: request.name.clone(), ..Default::default() };
            rooms.participants.entry(request.name.clone()).or_default();
            rooms.created.push(request);
            room.encode_to_vec().into_response()
        }
        ("livekit.RoomService", "ListRooms") => {
            let request = proto::ListRoomsRequest::decode(body).unwrap();
            let wanted = |name: &String| request.names.is_empty() || request.names.contains(name);
            let found = rooms.participants.iter().filter(|(name, _)| wanted(name));
            let rooms = found
                .map(|(name, here)| proto::Room {
                    name: name.clone(),
                    num_participants: here
                        .iter()
                        .filter(|one| one.kind() != proto::participant_info::Kind::Agent)
                        .count() as u32,
                    ..Default::default()
                })
                .collect();
            proto::ListRoomsResponse { rooms }.encode_to_vec().into_response()
        }
        ("livekit.RoomService", "ListParticipants") => {
            let request = proto::ListParticipantsRequest::decode(body).unwrap();
            let participants = rooms.participants.get(&request.room).cloned().unwrap_or_default();
            proto::ListParticipantsResponse { participants }.encode_to_vec().into_response()
        }
        ("livekit.RoomService", "DeleteRoom") => {
            let request = proto::DeleteRoomRequest::decode(body).unwrap();
            if rooms.participants.remove(&request.room).is_none() {
                let error = json!({ "code": "not_found", "msg": "room not found" });
                return (StatusCode::NOT_FOUND, Json(error)).into_response();
            }
            proto::DeleteRoomResponse::default().encode_to_vec().into_response()
        }
        ("livekit.RoomService", "RemoveParticipant") => {
            let request = proto::RoomParticipantIdentity::decode(body).unwrap();
            if let Some(here) = rooms.participants.get_mut(&request.room) {
                here.retain(|one| one.identity != request.identity);
            }
            rooms.removed.notify_one();
            proto::RemoveParticipantResponse::default().encode_to_vec().into_response()
        }
        ("livekit.RoomService", "UpdateSubscriptions") => {
            let request = proto::UpdateSubscriptionsRequest::decode(body).unwrap();
            rooms.subscriptions.push((request.room, request.identity, request.subscribe));
            proto::UpdateSubscriptionsResponse::default().encode_to_vec().into_response()
        }
        ("livekit.Egress", "StartRoomCompositeEgress") => {
            let request = proto::RoomCompositeEgressRequest::decode(body).unwrap();
            let info = proto::EgressInfo {
                egress_id: format!("EG_{}", rooms.egresses.len()),
                room_name: request.room_name.clone(),
                ..Default::default()
            };
            rooms.egresses.push(request);
            info.encode_to_vec().into_response()
        }
        ("livekit.Egress", "StopEgress") => {
            let request = proto::StopEgressRequest::decode(body).unwrap();
            rooms.stopped.push(request.egress_id.clone());
            let info = proto::EgressInfo { egress_id: request.egress_id, ..Default::default() };
            info.encode_to_vec().into_response()
        }
        ("livekit.AgentDispatchService", "DeleteDispatch") => {
            let request = proto::DeleteAgentDispatchRequest::decode(body).unwrap();
            rooms.dispatches.retain(|one| one.id != request.dispatch_id);
            proto::AgentDispatch::default().encode_to_vec().into_response()
        }
        ("livekit.AgentDispatchService", "ListDispatch") => {
            let request = proto::ListAgentDispatchRequest::decode(body).unwrap();
            let of_room = rooms.dispatches.iter().filter(|d| d.room == request.room);
            let agent_dispatches = of_room.cloned().collect();
            proto::ListAgentDispatchResponse { agent_dispatches }.encode_to_vec().into_response()
        }
        ("livekit.AgentDispatchService", "CreateDispatch") => {
            let request = proto::CreateAgentDispatchRequest::decode(body).unwrap();
            let dispatch = proto::AgentDispatch {
                agent_name: request.agent_name,
                room: request.room,
                metadata: request.metadata,
                id: format!("AD_{}", uuid::Uuid::new_v4().simple()),
                ..Default::default()
            };
            rooms.dispatches.push(dispatch.clone());
            dispatch.encode_to_vec().into_response()
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}
