//! Random orders of messages against the invariants.

use proptest::prelude::*;

use super::*;

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
