//! Draining, and the exit.

use super::*;

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
    worker.pass_alive(ms(29_000)).server(asked("AJ_2"));
    assert_eq!(worker.answers().last().unwrap(), &("AJ_2".into(), false));
    assert_eq!(worker.count(&Command::DrainJobs), 0, "its call goes on");
    worker.pass_alive(ms(1_000));
    assert_eq!(worker.count(&Command::DrainJobs), 1, "half of the time is for farewells");
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
