//! Availability and assignment: which jobs are taken.

use super::*;

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
