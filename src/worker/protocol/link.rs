//! The link to the server: made, registered on, watched by pings, lost and made again.

use std::time::Instant;

use livekit_protocol::{self as wire, JobType, worker_message::Message as ToServer};

use super::{Command, Disconnect, Exit, Fault, Link, Notice, Protocol, Timer};

impl Protocol {
    pub(super) fn connect(&mut self, now: Instant) {
        self.link = Link::Connecting;
        self.tries = self.tries.saturating_add(1);
        self.set(Timer::Connect, now + self.config.timing.connect);
        self.command(Command::Connect);
    }

    #[allow(deprecated, reason = "`agent` still marks the permission on servers that know no kind")]
    pub(super) fn on_connected(&mut self, now: Instant) {
        if self.link != Link::Connecting {
            return;
        }
        self.link = Link::Registering;
        self.timers.remove(&Timer::Connect);
        self.set(Timer::Register, now + self.config.timing.register);
        let register = wire::RegisterWorkerRequest {
            r#type: JobType::JtRoom.into(),
            agent_name: self.config.agent_name.clone(),
            version: self.config.version.clone(),
            ping_interval: u32::try_from(self.config.timing.ping.as_secs()).unwrap_or(u32::MAX),
            allowed_permissions: Some(wire::ParticipantPermission {
                can_publish: true,
                can_subscribe: true,
                can_publish_data: true,
                can_update_metadata: true,
                agent: true,
                ..Default::default()
            }),
            ..Default::default()
        };
        self.send(ToServer::Register(register));
    }

    pub(super) fn on_registered(&mut self, response: wire::RegisterWorkerResponse, now: Instant) {
        if self.link != Link::Registering {
            return self.fault(Fault::RegisteredAgain);
        }
        self.link = Link::Registered;
        self.was_registered = true;
        self.tries = 0;
        self.status_seq = 0;
        self.timers.remove(&Timer::Register);
        self.set(Timer::Ping, now + self.config.timing.ping);
        self.command(Command::Log(Notice::Registered {
            worker_id: clipped(&response.worker_id),
            server_version: response
                .server_info
                .map(|info| clipped(&info.version))
                .unwrap_or_default(),
        }));
        // Before anything else, so that a draining worker is not offered a job.
        self.report_status(now);
        let going_on = self.jobs.iter().filter(|(_, job)| !job.told);
        let job_ids: Vec<String> = going_on.map(|(id, _)| id.clone()).collect();
        if !job_ids.is_empty() {
            self.send(ToServer::MigrateJob(wire::MigrateJobRequest { job_ids }));
        }
        for status in std::mem::take(&mut self.unsent) {
            self.send(ToServer::UpdateJob(status));
        }
    }

    /// The link is gone, whoever closed it.
    pub(super) fn lose(&mut self, reason: Disconnect, now: Instant) {
        for timer in [Timer::Connect, Timer::Register, Timer::Status, Timer::Ping, Timer::Pong] {
            self.timers.remove(&timer);
        }
        // An assignment can only come over the link that the job was accepted on.
        self.reserved.clear();
        self.reported = None;
        self.ping = None;
        self.give_receipts_up();
        let hopeless = matches!(reason, Disconnect::Unauthorized { .. });
        if hopeless || self.tries >= self.config.timing.tries {
            self.link = Link::Down;
            let jobs = self.jobs.len();
            self.command(Command::Log(Notice::GaveUp { reason: reason.clone(), jobs }));
            self.gave_up = Some(Exit::GaveUp { reason, tries: self.tries });
            // The jobs have their own connections: they may end in peace.
            return self.drain(now);
        }
        self.link = Link::Waiting;
        let timing = &self.config.timing;
        let delay = timing.backoff.saturating_mul(self.tries.max(1)).min(timing.backoff_max);
        self.set(Timer::Reconnect, now + delay);
        self.command(Command::Log(Notice::Reconnecting { reason, tries: self.tries, delay }));
    }

    pub(super) fn close_and_lose(&mut self, reason: Disconnect, now: Instant) {
        self.command(Command::Close);
        self.lose(reason, now);
    }

    pub(super) fn send_ping(&mut self, now: Instant) {
        let timestamp = now.saturating_duration_since(self.epoch).as_millis() as i64;
        self.ping = Some(timestamp);
        self.receipts.on_ping();
        self.timers.remove(&Timer::Ping);
        self.set(Timer::Pong, now + self.config.timing.pong);
        self.send(ToServer::Ping(wire::WorkerPing { timestamp }));
    }

    /// There is no link to get them over: nobody waits for it.
    pub(super) fn give_receipts_up(&mut self) {
        let left = self.receipts.take();
        self.commands.extend(left.into_iter().map(|job_id| Command::JobRead { job_id }));
    }
}

/// A server's word for the log: its first 64 printable characters.
fn clipped(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(64).collect()
}
