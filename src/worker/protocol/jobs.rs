//! Jobs: offered, assigned, terminated, and how each one's end is told.

use std::{collections::HashMap, time::Instant};

use livekit_protocol::{self as wire, JobStatus, worker_message::Message as ToServer};

use super::{Command, Fault, Link, Notice, Protocol};
use crate::worker::{
    dispatch::{self, Assignment, MissingField},
    job::{JobError, code},
};

/// How many ended jobs are remembered, to know a repeated message from one never asked for.
const REMEMBERED_JOBS: usize = 256;

#[derive(Debug, Default)]
pub(super) struct Running {
    /// Set once the job has been told to leave.
    pub(super) abort_at: Option<Instant>,
    /// Its last status is out; it is leaving its room.
    pub(super) told: bool,
}

impl Protocol {
    /// The server waits up to 10 s for the answer and tries no other worker before it has it.
    pub(super) fn on_availability(&mut self, request: &wire::AvailabilityRequest, now: Instant) {
        let Ok(job_id) = dispatch::job_id(request.job.as_ref()) else {
            return self.fault(Fault::AvailabilityWithoutJob);
        };
        let job_id = job_id.to_owned();
        let has_room = request.job.as_ref().is_some_and(|job| dispatch::room_name(job).is_ok());
        let running = self.jobs.contains_key(&job_id);
        let accepted = self.reserved.contains_key(&job_id);
        if !has_room {
            self.fault(Fault::AvailabilityWithoutRoom);
        }
        if running || accepted {
            self.fault(Fault::AvailabilityRepeated);
        }
        if !has_room || running || !(accepted || self.can_take()) {
            return self.send(ToServer::Availability(wire::AvailabilityResponse {
                job_id,
                available: false,
                ..Default::default()
            }));
        }
        self.reserved.insert(job_id.clone(), now + self.config.timing.assignment);
        self.ended.retain(|ended| *ended != job_id);
        let name = &self.config.agent_name;
        let mut attributes = HashMap::from([("lk.agent.state".into(), "initializing".into())]);
        if !name.is_empty() {
            attributes.insert("lk.agent.name".into(), name.clone());
        }
        self.send(ToServer::Availability(wire::AvailabilityResponse {
            participant_identity: format!("agent-{job_id}"),
            participant_name: name.clone(),
            participant_attributes: attributes,
            available: true,
            job_id,
            ..Default::default()
        }));
    }

    pub(super) fn on_assignment(&mut self, assignment: wire::JobAssignment) {
        let Ok(job_id) = dispatch::job_id(assignment.job.as_ref()) else {
            return self.fault(Fault::AssignmentWithoutJob);
        };
        let job_id = job_id.to_owned();
        if self.jobs.contains_key(&job_id) || self.ended.contains(&job_id) {
            return self.fault(Fault::AssignmentRepeated);
        }
        if self.reserved.remove(&job_id).is_none() {
            // The server counts the job as running here, so it is told that it does not.
            self.fault(Fault::AssignmentNotAskedFor);
            let message = "this worker has not accepted the job, or not in time";
            return self.finish(job_id, Err(JobError::new(code::NOT_ACCEPTED, message)));
        }
        match Assignment::try_from(assignment) {
            Ok(assignment) => {
                self.jobs.insert(job_id.clone(), Running::default());
                self.command(Command::StartJob(Box::new(assignment)));
                self.send(job_status(job_id, JobStatus::JsRunning, String::new()));
            }
            Err(missing) => self.refuse_incomplete(job_id, missing),
        }
    }

    fn refuse_incomplete(&mut self, job_id: String, missing: MissingField) {
        self.fault(Fault::AssignmentIncomplete);
        self.finish(job_id, Err(JobError::new(code::INVALID_ASSIGNMENT, missing.to_string())));
    }

    pub(super) fn on_termination(&mut self, job_id: &str, now: Instant) {
        if self.jobs.contains_key(job_id) {
            self.terminate(job_id, now);
        } else if self.reserved.remove(job_id).is_none()
            // One that crosses the job's own end is nobody's fault.
            && !self.ended.iter().any(|ended| ended == job_id)
        {
            self.fault(Fault::TerminationOfUnknownJob);
        }
    }

    /// Tells the server how a job ended, now or when there is a link again.
    pub(super) fn finish(&mut self, job_id: String, result: Result<(), JobError>) {
        let (status, error) = match result {
            Ok(()) => (JobStatus::JsSuccess, String::new()),
            Err(error) => (JobStatus::JsFailed, error.to_string()),
        };
        self.ended.push_back(job_id.clone());
        if self.ended.len() > REMEMBERED_JOBS {
            self.ended.pop_front();
        }
        let update = wire::UpdateJobStatus { job_id, status: status.into(), error };
        if self.link == Link::Registered {
            self.send(ToServer::UpdateJob(update));
        } else {
            self.unsent.push(update);
        }
    }

    pub(super) fn terminate(&mut self, job_id: &str, now: Instant) {
        let abort_at = now + self.config.timing.terminate;
        if let Some(job) = self.jobs.get_mut(job_id)
            && job.abort_at.is_none()
        {
            job.abort_at = Some(abort_at);
            self.command(Command::TerminateJob { job_id: job_id.to_owned() });
        }
    }

    pub(super) fn abort_overdue(&mut self, now: Instant) {
        let overdue = |job: &Running| job.abort_at.is_some_and(|at| at <= now);
        let ids: Vec<String> =
            self.jobs.iter().filter(|(_, job)| overdue(job)).map(|(id, _)| id.clone()).collect();
        for job_id in ids {
            let Some(job) = self.jobs.remove(&job_id) else { continue };
            self.command(Command::Log(Notice::JobAborted { job_id: job_id.clone() }));
            self.abort(job_id, &job, "the job did not leave in time");
        }
    }

    pub(super) fn abort(&mut self, job_id: String, job: &Running, why: &str) {
        self.command(Command::AbortJob { job_id: job_id.clone() });
        if !job.told {
            self.finish(job_id, Err(JobError::new(code::ABORTED, why)));
        }
    }
}

fn job_status(job_id: String, status: JobStatus, error: String) -> ToServer {
    ToServer::UpdateJob(wire::UpdateJobStatus { job_id, status: status.into(), error })
}
