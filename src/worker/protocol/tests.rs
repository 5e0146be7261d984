//! Virtual time: `now` is a number that the tests move.

use livekit_protocol::{
    AvailabilityRequest, Job, JobAssignment, JobTermination, RegisterWorkerResponse, Room,
    WorkerPong, agent_http,
};
use proptest::prelude::*;

use super::*;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn config() -> Config {
    Config {
        agent_name: "assistant".into(),
        version: "1.2.3".into(),
        max_jobs: 4,
        load_threshold: 0.7,
        fixed_load: None,
        drain_timeout: ms(60_000),
        timing: Timing::default(),
    }
}

fn job(id: &str) -> Job {
    Job {
        id: id.into(),
        room: Some(Room { name: format!("room-{id}"), ..Default::default() }),
        ..Default::default()
    }
}

fn asked(id: &str) -> FromServer {
    FromServer::Availability(AvailabilityRequest { job: Some(job(id)), resuming: false })
}

fn assigned(id: &str) -> FromServer {
    FromServer::Assignment(JobAssignment { job: Some(job(id)), url: None, token: "token".into() })
}

fn terminated(id: &str) -> FromServer {
    FromServer::Termination(JobTermination { job_id: id.into() })
}

fn registered() -> FromServer {
    FromServer::Register(RegisterWorkerResponse { worker_id: "AW_1".into(), ..Default::default() })
}

fn lost() -> Input {
    Input::Disconnected(Disconnect::Lost("reset".into()))
}

/// A worker, and the server's end of it.
struct Worker {
    machine: Protocol,
    now: Instant,
    seen: Vec<Command>,
}

impl Worker {
    fn new(config: Config) -> Self {
        let now = crate::clock::now();
        let mut worker = Self { machine: Protocol::new(config, now), now, seen: Vec::new() };
        worker.drain_commands();
        worker
    }

    fn registered() -> Self {
        Self::registered_with(config())
    }

    fn registered_with(config: Config) -> Self {
        let mut worker = Self::new(config);
        worker.register();
        worker.seen.clear();
        worker
    }

    fn register(&mut self) {
        self.input(Input::Connected);
        self.server(registered());
    }

    fn input(&mut self, input: Input) -> &mut Self {
        self.machine.handle_input(input, self.now);
        self.drain_commands();
        self
    }

    fn server(&mut self, message: FromServer) -> &mut Self {
        self.input(Input::Message(Box::new(ServerMessage { message: Some(message) })))
    }

    fn start(&mut self, id: &str) -> &mut Self {
        self.server(asked(id)).server(assigned(id))
    }

    fn end(&mut self, id: &str, result: Result<(), JobError>) -> &mut Self {
        self.input(Input::JobEnded { job_id: id.into(), result })
    }

    fn drain_commands(&mut self) {
        while let Some(command) = self.machine.poll_command() {
            self.seen.push(command);
        }
    }

    /// Lets time pass, firing every timer on its way.
    fn pass(&mut self, time: Duration) -> &mut Self {
        let until = self.now + time;
        while let Some(at) = self.machine.poll_timeout().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            self.machine.handle_timeout(self.now);
            self.drain_commands();
        }
        self.now = until;
        self
    }

    /// As `pass`, with a server that answers pings.
    fn pass_alive(&mut self, time: Duration) -> &mut Self {
        let until = self.now + time;
        while self.now < until {
            self.pass(ms(100));
            self.pong();
        }
        self
    }

    fn pong(&mut self) -> &mut Self {
        if let Some(last_timestamp) = self.machine.ping {
            self.server(FromServer::Pong(WorkerPong { last_timestamp, timestamp: 0 }));
        }
        self
    }

    fn take(&mut self) -> Vec<Command> {
        std::mem::take(&mut self.seen)
    }

    fn sent(&self) -> Vec<&ToServer> {
        self.seen
            .iter()
            .filter_map(|command| match command {
                Command::Send(message) => message.message.as_ref(),
                _ => None,
            })
            .collect()
    }

    fn count(&self, wanted: &Command) -> usize {
        self.seen.iter().filter(|command| *command == wanted).count()
    }

    fn answers(&self) -> Vec<(String, bool)> {
        self.sent()
            .iter()
            .filter_map(|message| match message {
                ToServer::Availability(answer) => Some((answer.job_id.clone(), answer.available)),
                _ => None,
            })
            .collect()
    }

    fn statuses(&self) -> Vec<wire::UpdateWorkerStatus> {
        self.sent()
            .iter()
            .filter_map(|message| match message {
                ToServer::UpdateWorker(status) => Some(*status),
                _ => None,
            })
            .collect()
    }

    /// (job, status, error) as sent.
    fn job_statuses(&self) -> Vec<(String, JobStatus, String)> {
        self.sent()
            .iter()
            .filter_map(|message| match message {
                ToServer::UpdateJob(update) => {
                    Some((update.job_id.clone(), update.status(), update.error.clone()))
                }
                _ => None,
            })
            .collect()
    }

    fn finals(&self, id: &str) -> Vec<JobStatus> {
        self.job_statuses()
            .into_iter()
            .filter(|(job, status, _)| job == id && *status != JobStatus::JsRunning)
            .map(|(_, status, _)| status)
            .collect()
    }

    fn started(&self) -> Vec<&str> {
        self.seen
            .iter()
            .filter_map(|command| match command {
                Command::StartJob(job) => Some(job.job_id.as_str()),
                _ => None,
            })
            .collect()
    }

    fn faults(&self) -> Vec<Fault> {
        self.seen
            .iter()
            .filter_map(|command| match command {
                Command::Log(Notice::Fault(fault)) => Some(*fault),
                _ => None,
            })
            .collect()
    }

    fn exit(&self) -> Option<&Exit> {
        self.seen.iter().find_map(|command| match command {
            Command::Exit(how) => Some(how),
            _ => None,
        })
    }

    fn connects(&self) -> usize {
        self.count(&Command::Connect)
    }
}

// Registration.

#[test]
#[allow(deprecated, reason = "`agent` is asked for on purpose")]
fn it_registers_before_it_says_anything_else() {
    let mut worker = Worker::new(config());
    assert_eq!(worker.take(), [Command::Connect]);
    worker.input(Input::Load { cpu: 0.4 }).input(Input::Connected).pass(ms(3_000));
    let sent = worker.sent();
    let [ToServer::Register(request)] = sent.as_slice() else { panic!("{sent:?}") };
    assert_eq!(request.r#type(), JobType::JtRoom);
    assert_eq!((request.agent_name.as_str(), request.version.as_str()), ("assistant", "1.2.3"));
    assert_eq!(request.ping_interval, 15);
    let allowed = request.allowed_permissions.clone().unwrap();
    assert!(allowed.can_publish && allowed.can_subscribe && allowed.can_publish_data);
    assert!(allowed.can_update_metadata && allowed.agent && !allowed.hidden);
}

#[test]
fn once_registered_it_reports_itself_available() {
    let mut worker = Worker::new(config());
    worker.register();
    assert!(worker.machine.snapshot().registered);
    let statuses = worker.statuses();
    assert_eq!(statuses.len(), 1);
    assert_eq!(statuses[0].status(), WorkerStatus::WsAvailable);
    assert_eq!((statuses[0].load, statuses[0].job_count), (0.0, 0));
}

#[test]
fn a_server_that_does_not_confirm_within_ten_seconds_is_left() {
    let mut worker = Worker::new(config());
    worker.input(Input::Connected).pass(ms(9_999));
    assert_eq!(worker.count(&Command::Close), 0);
    worker.pass(ms(1));
    assert_eq!(worker.count(&Command::Close), 1);
    worker.pass(ms(2_000));
    assert_eq!(worker.connects(), 2);
}

#[test]
fn a_connection_that_does_not_come_up_within_ten_seconds_is_given_up() {
    let mut worker = Worker::new(config());
    worker.pass(ms(10_000));
    assert_eq!(worker.count(&Command::Close), 1);
}

#[test]
fn a_second_confirmation_is_ignored() {
    let mut worker = Worker::registered();
    worker.server(registered()).server(registered());
    assert_eq!(worker.take(), [Command::Log(Notice::Fault(Fault::RegisteredAgain))]);
}

// Availability and assignment.

#[test]
fn a_free_worker_accepts_at_once_as_the_agent_of_the_job() {
    let mut worker = Worker::registered();
    worker.server(asked("AJ_1"));
    let sent = worker.sent();
    let ToServer::Availability(answer) = sent[0] else { panic!("{sent:?}") };
    assert!(answer.available && !answer.terminate && !answer.supports_resume);
    assert_eq!(answer.job_id, "AJ_1");
    assert_eq!(answer.participant_identity, "agent-AJ_1");
    assert_eq!(answer.participant_name, "assistant");
    assert_eq!(answer.participant_attributes["lk.agent.name"], "assistant");
    assert_eq!(answer.participant_attributes["lk.agent.state"], "initializing");
}

#[test]
fn an_assigned_job_is_started_and_reported_running() {
    let mut worker = Worker::registered();
    worker.start("AJ_1");
    assert_eq!(worker.started(), ["AJ_1"]);
    assert_eq!(worker.job_statuses(), [("AJ_1".into(), JobStatus::JsRunning, String::new())]);
    assert_eq!(worker.statuses().last().unwrap().job_count, 1);
}

#[test]
fn a_full_worker_refuses_and_says_so() {
    let mut worker = Worker::registered();
    for id in ["AJ_1", "AJ_2", "AJ_3", "AJ_4", "AJ_5"] {
        worker.server(asked(id));
    }
    let answers: Vec<bool> = worker.answers().into_iter().map(|(_, yes)| yes).collect();
    assert_eq!(answers, [true, true, true, true, false]);
    assert_eq!(worker.statuses().last().unwrap().status(), WorkerStatus::WsFull);
}

#[test]
fn a_burst_is_not_accepted_beyond_the_load_that_its_jobs_will_make() {
    let mut worker = Worker::registered();
    worker.input(Input::Load { cpu: 0.4 });
    for id in ["AJ_1", "AJ_2", "AJ_3"] {
        worker.server(asked(id));
    }
    let answers: Vec<bool> = worker.answers().into_iter().map(|(_, yes)| yes).collect();
    assert_eq!(answers, [true, true, false]);
}

#[test]
fn a_busy_worker_refuses() {
    let mut worker = Worker::registered();
    worker.input(Input::Load { cpu: 0.7 }).server(asked("AJ_1"));
    assert_eq!(worker.answers(), [("AJ_1".into(), false)]);
    assert_eq!(worker.statuses().last().unwrap().status(), WorkerStatus::WsFull);
}

#[test]
fn a_fixed_load_stands_for_the_measured_one() {
    let mut worker = Worker::registered_with(Config { fixed_load: Some(0.0), ..config() });
    worker.input(Input::Load { cpu: 1.0 }).server(asked("AJ_1")).pass(ms(2_500));
    assert_eq!(worker.answers(), [("AJ_1".into(), true)]);
    assert!(worker.statuses().iter().all(|status| status.load == 0.0));
}

#[test]
fn a_slot_is_free_again_seven_and_a_half_seconds_after_an_acceptance_without_assignment() {
    let mut worker = Worker::registered_with(Config { max_jobs: 1, ..config() });
    worker.server(asked("AJ_1")).pass(ms(7_499)).server(asked("AJ_2"));
    worker.pass(ms(1)).server(asked("AJ_3"));
    let answers: Vec<bool> = worker.answers().into_iter().map(|(_, yes)| yes).collect();
    assert_eq!(answers, [true, false, true]);
}

#[test]
fn an_assignment_that_comes_too_late_is_refused() {
    let mut worker = Worker::registered();
    worker.server(asked("AJ_1")).pass(ms(7_500)).server(assigned("AJ_1")).server(assigned("AJ_1"));
    assert!(worker.started().is_empty());
    assert_eq!(worker.faults(), [Fault::AssignmentNotAskedFor, Fault::AssignmentRepeated]);
    assert_eq!(worker.finals("AJ_1"), [JobStatus::JsFailed]);
}

#[test]
fn an_assignment_never_asked_for_is_not_run() {
    let mut worker = Worker::registered();
    worker.server(assigned("AJ_1")).server(assigned("AJ_2"));
    assert!(worker.started().is_empty());
    assert_eq!(worker.faults(), [Fault::AssignmentNotAskedFor]);
    let (_, status, error) = worker.job_statuses().remove(0);
    assert_eq!(status, JobStatus::JsFailed);
    assert!(error.starts_with("NOT_ACCEPTED: "), "{error}");
}

#[test]
fn a_repeated_assignment_starts_nothing_and_is_logged_once() {
    let mut worker = Worker::registered();
    worker.start("AJ_1").server(assigned("AJ_1")).server(assigned("AJ_1"));
    worker.end("AJ_1", Ok(())).server(assigned("AJ_1"));
    assert_eq!(worker.started(), ["AJ_1"]);
    assert_eq!(worker.faults(), [Fault::AssignmentRepeated]);
    assert_eq!(worker.finals("AJ_1"), [JobStatus::JsSuccess]);
}

#[test]
fn a_repeated_question_is_answered_without_a_second_slot() {
    let mut worker = Worker::registered();
    worker.server(asked("AJ_1")).server(asked("AJ_1"));
    assert_eq!(worker.answers(), [("AJ_1".into(), true), ("AJ_1".into(), true)]);
    assert_eq!(worker.machine.snapshot().reserved, 1);
    worker.server(assigned("AJ_1")).server(asked("AJ_1"));
    assert_eq!(worker.answers().last().unwrap(), &("AJ_1".into(), false));
}

#[test]
fn an_accepted_job_without_a_token_fails() {
    let mut worker = Worker::registered();
    worker.server(asked("AJ_1")).server(FromServer::Assignment(JobAssignment {
        job: Some(job("AJ_1")),
        ..Default::default()
    }));
    assert!(worker.started().is_empty());
    assert_eq!(worker.finals("AJ_1"), [JobStatus::JsFailed]);
    assert_eq!(worker.machine.snapshot().reserved, 0);
}

#[test]
fn a_job_without_a_room_is_refused() {
    let mut worker = Worker::registered();
    let job = Some(Job { id: "AJ_1".into(), ..Default::default() });
    worker.server(FromServer::Availability(AvailabilityRequest { job, resuming: false }));
    assert_eq!(worker.answers(), [("AJ_1".into(), false)]);
    assert_eq!(worker.faults(), [Fault::AvailabilityWithoutRoom]);
}

#[test]
fn malformed_messages_are_logged_once_and_change_nothing() {
    let mut worker = Worker::registered();
    for _ in 0..3 {
        worker.input(Input::Undecodable);
        worker.input(Input::Message(Box::default()));
        worker.server(FromServer::Availability(AvailabilityRequest::default()));
        worker.server(FromServer::Assignment(JobAssignment::default()));
        worker.server(terminated(""));
        worker.server(FromServer::Pong(WorkerPong { last_timestamp: 7, timestamp: 7 }));
    }
    assert_eq!(
        worker.take(),
        [
            Fault::Undecodable,
            Fault::UnknownMessage,
            Fault::AvailabilityWithoutJob,
            Fault::AssignmentWithoutJob,
            Fault::TerminationOfUnknownJob,
            Fault::PongWithoutPing,
        ]
        .map(|fault| Command::Log(Notice::Fault(fault)))
    );
}

#[test]
fn nothing_is_answered_before_the_registration_is_confirmed() {
    let mut worker = Worker::new(config());
    worker.input(Input::Connected);
    worker.take();
    worker.server(asked("AJ_1")).server(assigned("AJ_1")).server(terminated("AJ_1"));
    assert_eq!(worker.take(), [Command::Log(Notice::Fault(Fault::NotRegistered))]);
}

// The end of a job.

#[test]
fn a_job_ends_with_success_or_with_its_error() {
    let mut worker = Worker::registered();
    worker.start("AJ_1").start("AJ_2");
    worker.seen.clear();
    worker.end("AJ_1", Ok(()));
    worker.end("AJ_2", Err(JobError::new(code::ROOM_NOT_FOUND, "the room is gone")));
    assert_eq!(
        worker.job_statuses(),
        [
            ("AJ_1".into(), JobStatus::JsSuccess, String::new()),
            ("AJ_2".into(), JobStatus::JsFailed, "ROOM_NOT_FOUND: the room is gone".into()),
        ]
    );
    assert_eq!(worker.statuses().last().unwrap().job_count, 0);
}

#[test]
fn a_terminated_job_is_told_once_and_its_end_reported() {
    let mut worker = Worker::registered();
    worker.start("AJ_1").server(terminated("AJ_1")).server(terminated("AJ_1"));
    assert_eq!(worker.count(&Command::TerminateJob { job_id: "AJ_1".into() }), 1);
    worker.end("AJ_1", Ok(())).server(terminated("AJ_1"));
    assert_eq!(worker.finals("AJ_1"), [JobStatus::JsSuccess]);
    assert!(worker.faults().is_empty());
}

#[test]
fn a_terminated_job_that_does_not_leave_is_aborted_after_ten_seconds() {
    let mut worker = Worker::registered();
    worker.start("AJ_1").server(terminated("AJ_1")).pass(ms(9_999));
    assert_eq!(worker.count(&Command::AbortJob { job_id: "AJ_1".into() }), 0);
    worker.pass(ms(1));
    assert_eq!(worker.count(&Command::AbortJob { job_id: "AJ_1".into() }), 1);
    worker.end("AJ_1", Ok(()));
    assert_eq!(worker.finals("AJ_1"), [JobStatus::JsFailed]);
    assert_eq!(worker.machine.snapshot().jobs, 0);
}

#[test]
fn terminating_an_accepted_job_frees_its_slot() {
    let mut worker = Worker::registered();
    worker.server(asked("AJ_1")).server(terminated("AJ_1"));
    assert_eq!(worker.machine.snapshot().reserved, 0);
}

// Load and pings.

#[test]
fn the_load_is_reported_every_two_and_a_half_seconds() {
    let mut worker = Worker::registered();
    worker.input(Input::Load { cpu: 0.25 }).pass_alive(ms(10_000));
    let loads: Vec<f32> = worker.statuses().iter().map(|status| status.load).collect();
    assert_eq!(loads, [0.25; 4]);
}

#[test]
fn reports_are_numbered() {
    let mut worker = Worker::new(config());
    worker.register();
    worker.pass_alive(ms(5_000));
    let numbers: Vec<u64> = worker.statuses().iter().map(|status| status.seq).collect();
    assert_eq!(numbers, [1, 2, 3]);
}

#[test]
fn a_load_that_is_no_share_is_made_one() {
    let mut worker = Worker::registered();
    for cpu in [f32::NAN, -3.0, 17.0, f32::INFINITY] {
        worker.input(Input::Load { cpu }).pass_alive(ms(2_500));
    }
    let loads: Vec<f32> = worker.statuses().iter().map(|status| status.load).collect();
    assert!(loads.iter().all(|load| (0.0..=1.0).contains(load)), "{loads:?}");
}

#[test]
fn a_server_that_answers_pings_is_kept() {
    let mut worker = Worker::registered();
    worker.pass_alive(ms(120_000));
    let pings = worker.sent().iter().filter(|sent| matches!(sent, ToServer::Ping(_))).count();
    assert_eq!(pings, 8);
    assert_eq!(worker.connects(), 0);
}

#[test]
fn a_ping_without_pong_means_a_new_connection() {
    let mut worker = Worker::registered();
    worker.pass(ms(24_999));
    assert_eq!(worker.count(&Command::Close), 0);
    worker.pass(ms(1));
    assert_eq!(worker.count(&Command::Close), 1);
    worker.pass(ms(2_000));
    assert_eq!(worker.connects(), 1);
}

// Losing the link.

#[test]
fn attempts_are_two_seconds_further_apart_each_time_up_to_ten() {
    let mut worker = Worker::new(config());
    let mut waits = Vec::new();
    for _ in 0..7 {
        worker.input(Input::Disconnected(Disconnect::Unreachable("refused".into())));
        let at = worker.machine.poll_timeout().unwrap();
        waits.push((at - worker.now).as_secs());
        worker.pass(at - worker.now);
    }
    assert_eq!(waits, [2, 4, 6, 8, 10, 10, 10]);
}

#[test]
fn sixteen_failed_attempts_are_the_last() {
    let mut worker = Worker::new(config());
    for _ in 0..20 {
        worker.input(Input::Disconnected(Disconnect::Refused { status: 503 })).pass(ms(10_000));
    }
    assert_eq!(worker.connects(), 16);
    let reason = Disconnect::Refused { status: 503 };
    assert_eq!(worker.exit(), Some(&Exit::GaveUp { reason, tries: 16 }));
    assert_eq!(worker.machine.poll_timeout(), None);
}

#[test]
fn a_registration_gives_all_attempts_back() {
    let mut worker = Worker::new(config());
    for _ in 0..3 {
        for _ in 0..15 {
            worker.input(lost()).pass(ms(10_000));
        }
        worker.register();
    }
    assert_eq!(worker.exit(), None);
}

#[test]
fn wrong_credentials_end_the_worker_without_another_attempt() {
    let mut worker = Worker::new(config());
    worker.input(Input::Disconnected(Disconnect::Unauthorized { status: 401 })).pass(ms(600_000));
    assert_eq!(worker.connects(), 1);
    let reason = Disconnect::Unauthorized { status: 401 };
    assert_eq!(worker.exit(), Some(&Exit::GaveUp { reason, tries: 1 }));
}

#[test]
fn jobs_end_in_peace_when_the_server_no_longer_takes_the_credentials() {
    let mut worker = Worker::registered();
    worker.start("AJ_1").input(lost()).pass(ms(2_000));
    worker.input(Input::Disconnected(Disconnect::Unauthorized { status: 401 }));
    assert_eq!(worker.exit(), None);
    assert!(worker.machine.snapshot().gave_up);
    worker.end("AJ_1", Ok(()));
    assert!(matches!(worker.exit(), Some(Exit::GaveUp { .. })));
    assert_eq!(worker.connects(), 1);
}

#[test]
fn running_jobs_live_through_a_reconnect_and_are_migrated() {
    let mut worker = Worker::registered();
    worker.start("AJ_1").start("AJ_2").input(lost()).pass(ms(2_000));
    worker.take();
    worker.register();
    let sent = worker.sent();
    let migrate = wire::MigrateJobRequest { job_ids: vec!["AJ_1".into(), "AJ_2".into()] };
    assert!(sent.contains(&&ToServer::MigrateJob(migrate)), "{sent:?}");
    assert!(!worker.seen.iter().any(|command| matches!(command, Command::TerminateJob { .. })));
    assert_eq!(worker.machine.snapshot().jobs, 2);
}

#[test]
fn a_job_that_ends_without_a_link_is_reported_after_the_reconnect() {
    let mut worker = Worker::registered();
    worker.start("AJ_1").input(lost());
    worker.take();
    worker.end("AJ_1", Ok(())).pass(ms(2_000));
    assert!(worker.sent().is_empty());
    worker.register();
    assert_eq!(worker.finals("AJ_1"), [JobStatus::JsSuccess]);
    worker.input(lost()).pass(ms(2_000)).register();
    assert_eq!(worker.finals("AJ_1"), [JobStatus::JsSuccess]);
}

#[test]
fn a_job_that_is_over_is_reported_before_it_ends_and_once() {
    let mut worker = Worker::registered();
    worker.start("AJ_1");
    worker.input(Input::JobOver { job_id: "AJ_1".into(), result: Ok(()) });
    assert_eq!(worker.finals("AJ_1"), [JobStatus::JsSuccess]);
    assert_eq!(worker.machine.snapshot().jobs, 1, "it is still leaving");
    worker.input(Input::JobOver { job_id: "AJ_1".into(), result: Ok(()) });
    worker.end("AJ_1", Err(JobError::new(code::ABORTED, "the job was aborted")));
    assert_eq!(worker.finals("AJ_1"), [JobStatus::JsSuccess]);
    assert_eq!(worker.machine.snapshot().jobs, 0);
    worker.end("AJ_1", Ok(()));
    assert_eq!(worker.finals("AJ_1"), [JobStatus::JsSuccess]);
}

#[test]
fn a_job_may_leave_when_the_server_has_read_its_status() {
    let over = |id: &str| Input::JobOver { job_id: id.into(), result: Ok(()) };
    let read = |id: &str| Command::JobRead { job_id: id.into() };
    let mut worker = Worker::registered();
    worker.start("AJ_1").start("AJ_2").input(over("AJ_1"));
    // Its status comes after the ping that is out.
    worker.input(over("AJ_2"));
    assert_eq!((worker.count(&read("AJ_1")), worker.count(&read("AJ_2"))), (0, 0));
    worker.pong();
    assert_eq!((worker.count(&read("AJ_1")), worker.count(&read("AJ_2"))), (1, 0));
    worker.pong();
    assert_eq!((worker.count(&read("AJ_1")), worker.count(&read("AJ_2"))), (1, 1));
    let pings = worker.sent().iter().filter(|sent| matches!(sent, ToServer::Ping(_))).count();
    assert_eq!(pings, 2);
    assert!(worker.machine.ping.is_none());
}

#[test]
fn a_job_waits_for_no_server_that_is_gone() {
    let read = Command::JobRead { job_id: "AJ_1".into() };
    let over = || Input::JobOver { job_id: "AJ_1".into(), result: Ok(()) };
    let mut worker = Worker::registered();
    worker.start("AJ_1").input(over()).input(lost());
    assert_eq!(worker.count(&read), 1);
    let mut worker = Worker::registered();
    worker.start("AJ_1").input(lost()).input(over());
    assert_eq!(worker.count(&read), 1);
}

#[test]
fn a_job_that_is_leaving_is_neither_migrated_nor_failed_by_a_kill() {
    let mut worker = Worker::registered();
    worker.start("AJ_1").start("AJ_2");
    worker.input(Input::JobOver { job_id: "AJ_1".into(), result: Ok(()) });
    worker.input(lost()).pass(ms(2_000)).register();
    let migrate = wire::MigrateJobRequest { job_ids: vec!["AJ_2".into()] };
    assert!(worker.sent().contains(&&ToServer::MigrateJob(migrate)), "{:?}", worker.sent());
    worker.input(Input::Kill);
    assert_eq!(worker.finals("AJ_1"), [JobStatus::JsSuccess]);
    assert_eq!(worker.finals("AJ_2"), [JobStatus::JsFailed]);
}

#[test]
fn slots_reserved_on_a_lost_link_are_free() {
    let mut worker = Worker::registered();
    worker.server(asked("AJ_1")).input(lost());
    assert_eq!(worker.machine.snapshot().reserved, 0);
}

#[test]
fn a_server_that_goes_away_is_left_and_registered_with_again() {
    let mut worker = Worker::registered();
    worker.start("AJ_1").server(FromServer::GoAway(agent_http::GoAway::default()));
    assert_eq!(worker.count(&Command::Close), 1);
    worker.pass(ms(2_000));
    assert_eq!(worker.connects(), 1);
    assert_eq!(worker.machine.snapshot().jobs, 1);
}

// Draining.

#[test]
fn an_idle_worker_exits_as_soon_as_it_drains() {
    let mut worker = Worker::registered();
    worker.input(Input::Drain);
    assert_eq!(worker.seen.last(), Some(&Command::Exit(Exit::Drained)));
    assert_eq!(worker.count(&Command::Close), 1);
}

#[test]
fn a_draining_worker_is_full_refuses_and_waits_for_its_jobs() {
    let mut worker = Worker::registered();
    worker.start("AJ_1").input(Input::Drain);
    let status = *worker.statuses().last().unwrap();
    assert!(status.draining && status.status() == WorkerStatus::WsFull);
    assert_eq!(worker.count(&Command::DrainJobs), 1);
    worker.pass_alive(ms(30_000)).server(asked("AJ_2"));
    assert_eq!(worker.answers().last().unwrap(), &("AJ_2".into(), false));
    assert_eq!(worker.exit(), None);
    worker.end("AJ_1", Ok(()));
    assert_eq!(worker.finals("AJ_1"), [JobStatus::JsSuccess]);
    assert_eq!(worker.exit(), Some(&Exit::Drained));
}

#[test]
fn a_job_accepted_before_the_drain_is_still_run() {
    let mut worker = Worker::registered();
    worker.server(asked("AJ_1")).input(Input::Drain).server(assigned("AJ_1"));
    assert_eq!(worker.started(), ["AJ_1"]);
    assert_eq!(worker.exit(), None);
}

#[test]
fn jobs_are_terminated_when_the_drain_takes_too_long() {
    let mut worker = Worker::registered();
    worker.start("AJ_1").start("AJ_2").input(Input::Drain).pass_alive(ms(60_000));
    assert_eq!(worker.count(&Command::TerminateJob { job_id: "AJ_1".into() }), 1);
    worker.end("AJ_1", Ok(()));
    assert_eq!(worker.exit(), None);
    worker.pass_alive(ms(10_000));
    assert_eq!(worker.count(&Command::AbortJob { job_id: "AJ_2".into() }), 1);
    assert_eq!(worker.finals("AJ_2"), [JobStatus::JsFailed]);
    assert_eq!(worker.exit(), Some(&Exit::Drained));
}

#[test]
fn a_draining_worker_reconnects_to_report_its_last_job() {
    let mut worker = Worker::registered();
    worker.start("AJ_1").input(Input::Drain).input(lost()).end("AJ_1", Ok(()));
    assert_eq!(worker.exit(), None);
    worker.pass(ms(2_000)).register();
    assert_eq!(worker.finals("AJ_1"), [JobStatus::JsSuccess]);
    assert_eq!(worker.exit(), Some(&Exit::Drained));
}

#[test]
fn told_to_exit_at_once_it_fails_its_jobs_and_exits() {
    let mut worker = Worker::registered();
    worker.start("AJ_1").input(Input::Drain).input(Input::Kill);
    assert_eq!(worker.finals("AJ_1"), [JobStatus::JsFailed]);
    let end = &worker.seen[worker.seen.len() - 2..];
    assert_eq!(end, [Command::Close, Command::Exit(Exit::Killed)]);
}

#[test]
fn after_the_exit_nothing_happens() {
    let mut worker = Worker::registered();
    worker.input(Input::Kill);
    worker.take();
    worker.register();
    worker.start("AJ_1").input(lost()).input(Input::Drain).pass(ms(600_000));
    assert!(worker.take().is_empty());
}

// Random orders against the invariants.

#[derive(Debug, Clone, Copy)]
enum Step {
    Connected,
    Register,
    Asked(u8),
    Assigned(u8, bool),
    Terminated(u8),
    Pong(bool),
    GoAway,
    Empty,
    Undecodable,
    Lost(u8),
    Ended(u8, bool),
    Load(f32),
    Drain,
    Kill,
    Pass(u64),
    NextTimer,
}

fn step() -> impl Strategy<Value = Step> {
    let id = 0..6_u8;
    prop_oneof![
        4 => Just(Step::Connected),
        4 => Just(Step::Register),
        10 => id.clone().prop_map(Step::Asked),
        10 => (id.clone(), prop::bool::weighted(0.9)).prop_map(|(id, ok)| Step::Assigned(id, ok)),
        2 => id.clone().prop_map(Step::Terminated),
        3 => any::<bool>().prop_map(Step::Pong),
        1 => Just(Step::GoAway),
        1 => Just(Step::Empty),
        1 => Just(Step::Undecodable),
        2 => (0..12_u8).prop_map(Step::Lost),
        6 => (id, any::<bool>()).prop_map(|(id, ok)| Step::Ended(id, ok)),
        3 => any::<f32>().prop_map(Step::Load),
        1 => prop::bool::weighted(0.3).prop_map(|drain| if drain { Step::Drain } else { Step::NextTimer }),
        1 => prop::bool::weighted(0.1).prop_map(|kill| if kill { Step::Kill } else { Step::NextTimer }),
        4 => (0..9_000_u64).prop_map(Step::Pass),
        6 => Just(Step::NextTimer),
    ]
}

fn apply(worker: &mut Worker, step: Step) {
    let id = |n: u8| format!("AJ_{n}");
    match step {
        Step::Connected => worker.input(Input::Connected),
        Step::Register => worker.server(registered()),
        Step::Asked(n) => worker.server(asked(&id(n))),
        Step::Assigned(n, true) => worker.server(assigned(&id(n))),
        Step::Assigned(n, false) => worker.server(FromServer::Assignment(JobAssignment {
            job: Some(job(&id(n))),
            ..Default::default()
        })),
        Step::Terminated(n) => worker.server(terminated(&id(n))),
        Step::Pong(right) => {
            let sent = worker.machine.ping.unwrap_or(5);
            let last_timestamp = if right { sent } else { sent + 1 };
            worker.server(FromServer::Pong(WorkerPong { last_timestamp, timestamp: 0 }))
        }
        Step::GoAway => worker.server(FromServer::GoAway(agent_http::GoAway::default())),
        Step::Empty => worker.input(Input::Message(Box::default())),
        Step::Undecodable => worker.input(Input::Undecodable),
        Step::Lost(0) => {
            worker.input(Input::Disconnected(Disconnect::Unauthorized { status: 401 }))
        }
        Step::Lost(_) => worker.input(lost()),
        Step::Ended(n, true) => worker.end(&id(n), Ok(())),
        Step::Ended(n, false) => worker.end(&id(n), Err(JobError::new(code::JOIN_FAILED, "no"))),
        Step::Load(cpu) => worker.input(Input::Load { cpu }),
        Step::Drain => worker.input(Input::Drain),
        Step::Kill => worker.input(Input::Kill),
        Step::Pass(time) => worker.pass(ms(time)),
        Step::NextTimer => match worker.machine.poll_timeout() {
            Some(at) => worker.pass(at.saturating_duration_since(worker.now)),
            None => worker,
        },
    };
}

/// Every started job has had RUNNING before its one end; whoever is refused has an end alone.
fn check_job_statuses(worker: &Worker, complete: bool) -> Result<(), TestCaseError> {
    let mut open: BTreeMap<String, &str> = BTreeMap::new();
    for command in &worker.seen {
        match command {
            Command::StartJob(job) => {
                let before = open.insert(job.job_id.clone(), "started");
                prop_assert!(before.is_none(), "{} started twice", job.job_id);
            }
            Command::Send(message) => {
                let Some(ToServer::UpdateJob(update)) = &message.message else { continue };
                if update.status() == JobStatus::JsRunning {
                    let before = open.insert(update.job_id.clone(), "running");
                    prop_assert_eq!(before, Some("started"));
                } else if let Some(state) = open.remove(&update.job_id) {
                    prop_assert_eq!(state, "running");
                } else {
                    let refused = ["NOT_ACCEPTED", "INVALID_ASSIGNMENT"];
                    let refused = refused.iter().any(|code| update.error.starts_with(code));
                    prop_assert!(refused, "{} ended twice: {}", update.job_id, update.error);
                }
            }
            _ => {}
        }
    }
    prop_assert!(!complete || open.is_empty(), "without an end: {open:?}");
    Ok(())
}

fn check(worker: &Worker) -> Result<(), TestCaseError> {
    let snapshot = worker.machine.snapshot();
    prop_assert!(snapshot.jobs + snapshot.reserved <= worker.machine.config.max_jobs);
    prop_assert!((0.0..=1.0).contains(&snapshot.load));
    prop_assert!(worker.statuses().iter().all(|status| (0.0..=1.0).contains(&status.load)));
    for until in worker.machine.reserved.values() {
        prop_assert!(*until <= worker.now + ms(7_500));
    }
    let exits = worker.seen.iter().filter(|c| matches!(c, Command::Exit(_))).count();
    prop_assert!(exits <= 1);
    if exits == 1 {
        prop_assert!(matches!(worker.seen.last(), Some(Command::Exit(_))));
        prop_assert_eq!(worker.machine.poll_timeout(), None);
        prop_assert_eq!((snapshot.jobs, snapshot.reserved), (0, 0));
    } else {
        prop_assert!(worker.machine.poll_timeout().is_some(), "stuck without a timer");
    }
    Ok(())
}

proptest! {
    #[test]
    fn no_order_of_messages_breaks_the_worker(steps in prop::collection::vec(step(), 1..120)) {
        let mut worker = Worker::new(config());
        for step in steps {
            apply(&mut worker, step);
            check(&worker)?;
            check_job_statuses(&worker, false)?;
        }
        // Slots that are not claimed come back, and each job's end reaches a server that is there.
        for n in 0..6 {
            worker.end(&format!("AJ_{n}"), Ok(()));
        }
        worker.pass(ms(10_000));
        worker.register();
        prop_assert_eq!(worker.machine.snapshot().reserved, 0);
        let told = worker.machine.snapshot().registered || worker.exit() == Some(&Exit::Drained);
        check_job_statuses(&worker, told && !worker.machine.drain_timed_out)?;
    }
}
