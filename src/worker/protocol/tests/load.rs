//! Reports of load.

use super::*;

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
