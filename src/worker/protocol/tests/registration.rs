//! Registering: what comes first, and what is ignored before it.

use super::*;

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

#[test]
fn nothing_is_answered_before_the_registration_is_confirmed() {
    let mut worker = Worker::new(config());
    worker.input(Input::Connected);
    worker.take();
    worker.server(asked("AJ_1")).server(assigned("AJ_1")).server(terminated("AJ_1"));
    assert_eq!(worker.take(), [Command::Log(Notice::Fault(Fault::NotRegistered))]);
}
