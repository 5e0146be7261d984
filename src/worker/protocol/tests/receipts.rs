//! A job that is over before it has left its room, and how it learns that it may leave.

use super::*;

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
