//! Pings, losing the link, and what lives through it.

use super::*;

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
