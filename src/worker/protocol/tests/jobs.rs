//! The end of a job.

use super::*;

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
