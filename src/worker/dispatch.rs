//! What a server hands over with a job: the assignment, checked.

use std::{collections::HashMap, fmt};

use livekit_protocol as wire;
use secrecy::{ExposeSecret, SecretString};

/// Longest job id that is taken from a server, in bytes; real ones have about 15.
pub const MAX_ID_LEN: usize = 256;

/// A job as the runner gets it.
#[derive(Clone)]
pub struct Assignment {
    pub job_id: String,
    /// Empty for a job that no dispatch asked for.
    pub dispatch_id: String,
    /// The room's name, as tokens and the server API use it.
    pub room: String,
    /// The room's `RM_…` id.
    pub room_sid: String,
    /// As the creator of the room set it, JSON by convention; not to be trusted.
    pub room_metadata: String,
    /// As registered; empty for automatic dispatch.
    pub agent_name: String,
    /// As the dispatcher set it, JSON by convention; not to be trusted.
    pub metadata: String,
    /// As the dispatcher set them.
    pub attributes: HashMap<String, String>,
    /// Whom the job is about; only for jobs of one participant or publisher.
    pub participant: Option<Participant>,
    /// Where to join. Empty when the server named no place: the worker then puts its own URL, so
    /// that a runner always finds one.
    pub url: String,
    /// Joins the room as `agent-{job_id}`, kind AGENT.
    pub token: SecretString,
}

/// The participant a job is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Participant {
    pub identity: String,
    pub name: String,
    pub metadata: String,
    pub attributes: HashMap<String, String>,
}

/// What an assignment cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum MissingField {
    #[error("the assignment has no job")]
    Job,
    #[error("the job has no usable id")]
    JobId,
    #[error("the job has no room")]
    Room,
    #[error("the assignment has no token")]
    Token,
}

/// The job's id, if it is one that can be answered to.
pub fn job_id(job: Option<&wire::Job>) -> Result<&str, MissingField> {
    let id = job.ok_or(MissingField::Job)?.id.as_str();
    if id.is_empty() || id.len() > MAX_ID_LEN { Err(MissingField::JobId) } else { Ok(id) }
}

/// The job's room's name.
pub fn room_name(job: &wire::Job) -> Result<&str, MissingField> {
    match &job.room {
        Some(room) if !room.name.is_empty() => Ok(&room.name),
        _ => Err(MissingField::Room),
    }
}

impl TryFrom<wire::JobAssignment> for Assignment {
    type Error = MissingField;

    fn try_from(assignment: wire::JobAssignment) -> Result<Self, MissingField> {
        job_id(assignment.job.as_ref())?;
        let job = assignment.job.ok_or(MissingField::Job)?;
        room_name(&job)?;
        let room = job.room.ok_or(MissingField::Room)?;
        if assignment.token.is_empty() {
            return Err(MissingField::Token);
        }
        Ok(Self {
            job_id: job.id,
            dispatch_id: job.dispatch_id,
            room: room.name,
            room_sid: room.sid,
            room_metadata: room.metadata,
            agent_name: job.agent_name,
            metadata: job.metadata,
            attributes: job.attributes,
            participant: job.participant.map(|participant| Participant {
                identity: participant.identity,
                name: participant.name,
                metadata: participant.metadata,
                attributes: participant.attributes,
            }),
            url: assignment.url.unwrap_or_default(),
            token: assignment.token.into(),
        })
    }
}

/// Metadata may name people, so only what identifies the job is shown.
impl fmt::Debug for Assignment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Assignment")
            .field("job_id", &self.job_id)
            .field("room", &self.room)
            .finish_non_exhaustive()
    }
}

impl PartialEq for Assignment {
    fn eq(&self, other: &Self) -> bool {
        self.job_id == other.job_id
            && self.dispatch_id == other.dispatch_id
            && self.room == other.room
            && self.room_sid == other.room_sid
            && self.room_metadata == other.room_metadata
            && self.agent_name == other.agent_name
            && self.metadata == other.metadata
            && self.attributes == other.attributes
            && self.participant == other.participant
            && self.url == other.url
            && self.token.expose_secret() == other.token.expose_secret()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole() -> wire::JobAssignment {
        wire::JobAssignment {
            job: Some(wire::Job {
                id: "AJ_1".into(),
                room: Some(wire::Room { name: "lobby".into(), ..Default::default() }),
                metadata: "{\"caller\":\"Ann\"}".into(),
                ..Default::default()
            }),
            url: None,
            token: "jwt-of-the-job".into(),
        }
    }

    #[test]
    fn a_whole_assignment_is_taken_over() {
        let job = Assignment::try_from(whole()).unwrap();
        assert_eq!((job.job_id.as_str(), job.room.as_str()), ("AJ_1", "lobby"));
        assert_eq!(job.token.expose_secret(), "jwt-of-the-job");
        assert_eq!(job.url, "");
    }

    #[test]
    fn each_missing_field_is_named() {
        let without = |change: fn(&mut wire::JobAssignment)| {
            let mut assignment = whole();
            change(&mut assignment);
            Assignment::try_from(assignment).unwrap_err()
        };
        assert_eq!(without(|a| a.job = None), MissingField::Job);
        assert_eq!(without(|a| a.job.as_mut().unwrap().id.clear()), MissingField::JobId);
        assert_eq!(without(|a| a.job.as_mut().unwrap().id = "x".repeat(257)), MissingField::JobId);
        assert_eq!(without(|a| a.job.as_mut().unwrap().room = None), MissingField::Room);
        assert_eq!(
            without(|a| a.job.as_mut().unwrap().room = Some(wire::Room::default())),
            MissingField::Room
        );
        assert_eq!(without(|a| a.token.clear()), MissingField::Token);
    }

    #[test]
    fn neither_token_nor_metadata_is_in_the_debug_form() {
        let shown = format!("{:?}", Assignment::try_from(whole()).unwrap());
        assert!(!shown.contains("jwt-of-the-job") && !shown.contains("Ann"), "{shown}");
    }
}
