//! The LiveKit server as the control endpoint needs it: rooms, dispatch, who is there, tokens.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use livekit_api::{
    access_token::{AccessToken, AccessTokenError, Claims, VideoGrants},
    services::{
        ServerError, ServerErrorCode, ServiceError,
        agent_dispatch::AgentDispatchClient,
        egress::{EgressClient, EgressOutput, RoomCompositeOptions, encoding},
        room::{CreateRoomOptions, RoomClient},
    },
};
use livekit_protocol::{
    CreateAgentDispatchRequest, EgressInfo, EncodedFileOutput, EncodedFileType, S3Upload,
    encoded_file_output,
    participant_info::{Kind, State},
};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;

use super::error::{ApiError, Code};
use crate::config::control::S3;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
pub const MAX_PARTICIPANTS: u32 = 10;
/// In s.
pub const EMPTY_TIMEOUT: u32 = 300;

#[derive(Debug, Clone)]
pub struct LiveKitConfig {
    /// LIVEKIT_URL; ws, wss, http or https.
    pub url: String,
    pub api_key: String,
    pub api_secret: SecretString,
}

#[derive(Debug)]
pub struct LiveKit {
    rooms: RoomClient,
    dispatches: AgentDispatchClient,
    egress: EgressClient,
    config: LiveKitConfig,
}

/// Who is in a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Presence {
    /// Without agents.
    pub participants: u32,
    pub agent_connected: bool,
}

/// What a participant's token allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRequest {
    pub room: String,
    pub identity: String,
    pub name: String,
    pub can_publish: bool,
    pub can_subscribe: bool,
    pub can_publish_data: bool,
    pub can_update_own_metadata: bool,
    pub ttl: Duration,
}

impl LiveKit {
    pub fn new(config: LiveKitConfig) -> Self {
        let (url, key, secret) = (&config.url, &config.api_key, config.api_secret.expose_secret());
        let rooms =
            RoomClient::with_api_key(url, key, secret).with_request_timeout(REQUEST_TIMEOUT);
        let dispatches = AgentDispatchClient::with_api_key(url, key, secret)
            .with_request_timeout(REQUEST_TIMEOUT);
        let egress =
            EgressClient::with_api_key(url, key, secret).with_request_timeout(REQUEST_TIMEOUT);
        Self { rooms, dispatches, egress, config }
    }

    /// For what the server signs.
    pub fn keys(&self) -> (&str, &str) {
        (&self.config.api_key, self.config.api_secret.expose_secret())
    }

    /// The URL for clients' sockets.
    pub fn client_url(&self) -> String {
        match self.config.url.split_once("://") {
            Some(("http", rest)) => format!("ws://{rest}"),
            Some(("https", rest)) => format!("wss://{rest}"),
            _ => self.config.url.clone(),
        }
    }

    /// Makes the room if it is not there.
    pub async fn create_room(
        &self,
        room: &str,
        metadata: &str,
        max_participants: u32,
    ) -> Result<(), ApiError> {
        let options = CreateRoomOptions {
            max_participants,
            empty_timeout: EMPTY_TIMEOUT,
            metadata: metadata.to_owned(),
            ..CreateRoomOptions::default()
        };
        self.rooms.create_room(room, options).await.map_err(|error| failed(&error))?;
        Ok(())
    }

    /// Sends the agent to the room unless it has been sent.
    pub async fn dispatch(&self, room: &str, agent: &str, metadata: &str) -> Result<(), ApiError> {
        let known = self.dispatches.list_dispatch(room).await.map_err(|error| failed(&error))?;
        if known.iter().any(|dispatch| dispatch.agent_name == agent) {
            return Ok(());
        }
        let request = CreateAgentDispatchRequest {
            agent_name: agent.to_owned(),
            room: room.to_owned(),
            metadata: metadata.to_owned(),
            ..CreateAgentDispatchRequest::default()
        };
        self.dispatches.create_dispatch(request).await.map_err(|error| failed(&error))?;
        Ok(())
    }

    /// Every room that there is now.
    pub async fn rooms(&self) -> Result<HashSet<String>, ApiError> {
        let rooms = self.rooms.list_rooms(Vec::new()).await.map_err(|error| failed(&error))?;
        Ok(rooms.into_iter().map(|room| room.name).collect())
    }

    /// How many are in each of these rooms, without agents; a room that is not there is absent.
    pub async fn counts(&self, rooms: Vec<String>) -> Result<HashMap<String, u32>, ApiError> {
        let found = self.rooms.list_rooms(rooms).await.map_err(|error| failed(&error))?;
        Ok(found.into_iter().map(|room| (room.name, room.num_participants)).collect())
    }

    /// Sends the agent to the room anew if none is there.
    pub async fn bring_agent(
        &self,
        room: &str,
        agent: &str,
        metadata: &str,
    ) -> Result<(), ApiError> {
        if !self.agents(room).await?.0.is_empty() {
            return Ok(());
        }
        // A dispatch whose agent has left is not tried again by the server.
        self.forget_dispatches(room).await?;
        self.dispatch(room, agent, metadata).await
    }

    /// Takes every agent out of the room.
    pub async fn remove_agents(&self, room: &str) -> Result<(), ApiError> {
        self.forget_dispatches(room).await?;
        for identity in self.agents(room).await?.0 {
            match self.rooms.remove_participant(room, &identity).await {
                Ok(()) => {}
                Err(error) if is_not_found(&error) => {}
                Err(error) => return Err(failed(&error)),
            }
        }
        Ok(())
    }

    /// Lets every agent in the room hear the others, or not.
    pub async fn subscribe_agents(&self, room: &str, hear: bool) -> Result<(), ApiError> {
        let (agents, tracks) = self.agents(room).await?;
        for identity in agents {
            self.rooms
                .update_subscriptions(room, &identity, tracks.clone(), hear)
                .await
                .map_err(|error| failed(&error))?;
        }
        Ok(())
    }

    /// The agents in a room, and the tracks of everybody else.
    async fn agents(&self, room: &str) -> Result<(Vec<String>, Vec<String>), ApiError> {
        let found = match self.rooms.list_participants(room).await {
            Ok(found) => found,
            Err(error) if is_not_found(&error) => Vec::new(),
            Err(error) => return Err(failed(&error)),
        };
        let (agents, others): (Vec<_>, Vec<_>) = found
            .into_iter()
            .filter(|one| one.state() != State::Disconnected)
            .partition(|one| one.kind() == Kind::Agent);
        let tracks = others.into_iter().flat_map(|one| one.tracks).map(|track| track.sid);
        Ok((agents.into_iter().map(|one| one.identity).collect(), tracks.collect()))
    }

    async fn forget_dispatches(&self, room: &str) -> Result<(), ApiError> {
        let known = match self.dispatches.list_dispatch(room).await {
            Ok(known) => known,
            Err(error) if is_not_found(&error) => return Ok(()),
            Err(error) => return Err(failed(&error)),
        };
        for dispatch in known {
            match self.dispatches.delete_dispatch(dispatch.id, room).await {
                Ok(_) => {}
                Err(error) if is_not_found(&error) => {}
                Err(error) => return Err(failed(&error)),
            }
        }
        Ok(())
    }

    /// Has LiveKit Egress record the whole room into `path` of the storage; the recording's id.
    pub async fn start_egress(
        &self,
        room: &str,
        path: &str,
        s3: Option<&S3>,
    ) -> Result<String, ApiError> {
        let output = EncodedFileOutput {
            file_type: EncodedFileType::Mp4.into(),
            filepath: path.to_owned(),
            output: s3.map(|s3| encoded_file_output::Output::S3(upload(s3))),
            ..EncodedFileOutput::default()
        };
        let options = RoomCompositeOptions {
            layout: "grid".into(),
            encoding: encoding::H264_720P_30,
            ..RoomCompositeOptions::default()
        };
        let outputs = vec![EgressOutput::File(output)];
        let started = self.egress.start_room_composite_egress(room, outputs, options);
        Ok(started.await.map_err(|error| failed(&error))?.egress_id)
    }

    /// One that is over, or was never there, is fine.
    pub async fn stop_egress(&self, id: &str) -> Result<Option<EgressInfo>, ApiError> {
        match self.egress.stop_egress(id).await {
            Ok(info) => Ok(Some(info)),
            Err(error) if is_over(&error) => Ok(None),
            Err(error) => Err(failed(&error)),
        }
    }

    /// Removes everybody and the room; a room that is not there is fine.
    pub async fn delete_room(&self, room: &str) -> Result<(), ApiError> {
        match self.rooms.delete_room(room).await {
            Ok(()) => Ok(()),
            Err(error) if is_not_found(&error) => Ok(()),
            Err(error) => Err(failed(&error)),
        }
    }

    /// `None`: there is no such room.
    pub async fn presence(&self, room: &str) -> Result<Option<Presence>, ApiError> {
        let rooms =
            self.rooms.list_rooms(vec![room.to_owned()]).await.map_err(|error| failed(&error))?;
        if rooms.is_empty() {
            return Ok(None);
        }
        let found = match self.rooms.list_participants(room).await {
            Ok(found) => found,
            Err(error) if is_not_found(&error) => return Ok(None),
            Err(error) => return Err(failed(&error)),
        };
        let here = |kind: fn(Kind) -> bool| {
            found
                .iter()
                .filter(|one| one.state() != State::Disconnected && kind(one.kind()))
                .count()
        };
        Ok(Some(Presence {
            participants: here(|kind| kind != Kind::Agent) as u32,
            agent_connected: here(|kind| kind == Kind::Agent) > 0,
        }))
    }

    /// A token with a `jti` of its own; it is stored nowhere.
    pub fn token(&self, request: &TokenRequest) -> Result<String, ApiError> {
        self.sign(request).map_err(|error| {
            tracing::error!(%error, "a LiveKit token could not be signed");
            ApiError::new(Code::Internal)
        })
    }

    /// `livekit-token` makes the claims but knows no `jti` (RFC 7519 §4.1.7): it is added here, and
    /// the whole signed again by the same means.
    fn sign(&self, request: &TokenRequest) -> Result<String, AccessTokenError> {
        #[derive(Serialize)]
        struct Unique {
            #[serde(flatten)]
            claims: Claims,
            jti: String,
        }
        let secret = self.config.api_secret.expose_secret();
        let token = AccessToken::with_api_key(&self.config.api_key, secret)
            .with_ttl(request.ttl)
            .with_identity(&request.identity)
            .with_name(&request.name)
            .with_grants(VideoGrants {
                room_join: true,
                room: request.room.clone(),
                can_publish: Some(request.can_publish),
                can_subscribe: Some(request.can_subscribe),
                can_publish_data: Some(request.can_publish_data),
                can_update_own_metadata: Some(request.can_update_own_metadata),
                ..VideoGrants::default()
            })
            .to_jwt()?;
        let claims = Claims::from_unverified(&token)?;
        let unique = Unique { claims, jti: uuid::Uuid::new_v4().to_string() };
        let key = EncodingKey::from_secret(secret.as_bytes());
        Ok(jsonwebtoken::encode(&Header::new(Algorithm::HS256), &unique, &key)?)
    }
}

fn upload(s3: &S3) -> S3Upload {
    S3Upload {
        access_key: s3.access_key.clone().unwrap_or_default(),
        secret: s3.secret_key.as_ref().map_or("", |key| key.expose_secret()).to_owned(),
        region: s3.region.clone(),
        endpoint: s3.endpoint.as_ref().map_or("", url::Url::as_str).to_owned(),
        bucket: s3.bucket.clone(),
        // Compatible storages are seldom reached by a name for each bucket.
        force_path_style: s3.endpoint.is_some(),
        ..S3Upload::default()
    }
}

fn is_over(error: &ServiceError) -> bool {
    is_not_found(error)
        || matches!(
            error,
            ServiceError::Twirp(ServerError::Twirp(twirp))
                if twirp.code == ServerErrorCode::FAILED_PRECONDITION
        )
}

fn is_not_found(error: &ServiceError) -> bool {
    matches!(
        error,
        ServiceError::Twirp(ServerError::Twirp(twirp)) if twirp.code == ServerErrorCode::NOT_FOUND
    )
}

/// The cause goes to the log, the public gets what it can act on.
fn failed(error: &ServiceError) -> ApiError {
    let code = match error {
        ServiceError::Twirp(ServerError::Twirp(twirp)) => match twirp.code.as_str() {
            ServerErrorCode::NOT_FOUND => Code::RoomNotFound,
            ServerErrorCode::UNAVAILABLE | ServerErrorCode::DEADLINE_EXCEEDED => {
                Code::LivekitUnreachable
            }
            ServerErrorCode::RESOURCE_EXHAUSTED => Code::RoomFull,
            _ => Code::LivekitRefused,
        },
        // An answer that is not JSON: a wrong key (401 in plain text), or not a LiveKit server.
        ServiceError::Twirp(ServerError::Request(error)) if error.is_decode() => {
            Code::LivekitRefused
        }
        ServiceError::Twirp(ServerError::Request(_)) => Code::LivekitUnreachable,
        ServiceError::Twirp(_) | ServiceError::Env(_) | ServiceError::AccessToken(_) => {
            Code::LivekitRefused
        }
    };
    tracing::warn!(%error, code = code.as_str(), "a request to the LiveKit server failed");
    code.into()
}
