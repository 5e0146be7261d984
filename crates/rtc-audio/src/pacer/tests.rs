use proptest::prelude::*;

use super::*;

fn base() -> Instant {
    #[allow(clippy::disallowed_methods, reason = "an arbitrary origin of virtual time")]
    Instant::now()
}

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

#[test]
fn an_hour_of_ticks_has_no_drift_no_burst_and_no_hole() {
    let start = base();
    let mut pacer = Pacer::new(start);
    let mut last: Option<Instant> = None;
    for tick in 0..180_000_u32 {
        // Woken 0 to 9 ms late, as a busy machine does it.
        let now = pacer.deadline() + ms(u64::from(tick.wrapping_mul(2_654_435_761) >> 16) % 10);
        assert_eq!(now.saturating_duration_since(start + TICK * tick).as_millis() / 10, 0);
        if let Some(last) = last {
            let gap = now - last;
            assert!(gap > ms(10) && gap < ms(30), "{gap:?} between two packets");
        }
        last = Some(now);
        assert_eq!(pacer.ticked(now, false), 0);
    }
    assert_eq!(pacer.deadline(), start + Duration::from_hours(1));
}

#[test]
fn a_short_stall_is_made_up_for_and_a_long_one_is_skipped() {
    let start = base();
    let mut pacer = Pacer::new(start);
    assert_eq!(pacer.ticked(start + ms(110), false), 0);
    let due = (0..10).take_while(|_| {
        let due = pacer.deadline() <= start + ms(110);
        if due {
            pacer.ticked(start + ms(110), false);
        }
        due
    });
    assert_eq!(due.count(), 5);

    let suspended = pacer.deadline() + Duration::from_hours(1);
    let lost = pacer.ticked(suspended, false);
    assert_eq!(lost, 3_600 * 50 - 1);
    assert!(pacer.deadline() <= suspended && pacer.deadline() + TICK > suspended);
}

#[test]
fn sound_after_a_rest_goes_out_at_once() {
    let start = base();
    let mut pacer = Pacer::new(start);
    pacer.ticked(start, true);
    assert_eq!(pacer.rest_until(20), start + ms(400));
    assert_eq!(pacer.woken(start + ms(215)), 10);
    assert_eq!(pacer.deadline(), start + ms(215));
}

#[test]
fn ticks_stay_on_the_grid_after_sound_that_went_out_at_once() {
    let start = base();
    let mut pacer = Pacer::new(start);
    pacer.ticked(start, true);
    pacer.woken(start + ms(215));
    pacer.ticked(start + ms(215), false);
    for at in [220, 240, 260] {
        assert_eq!(pacer.deadline(), start + ms(at), "no gap longer than a tick");
        pacer.ticked(start + ms(at), false);
    }
    let now = pacer.deadline();
    assert_eq!(pacer.ticked(now, true), 0);
    assert_eq!(pacer.deadline(), now + TICK * 2, "paid back in silence");
}

proptest! {
    /// RTP time, which is what ticks count, never leaves the clock by more than a tick.
    #[test]
    fn ticks_stay_with_the_clock(
        steps in proptest::collection::vec((0_u64..450, 0_u64..15, any::<bool>()), 1..400)
    ) {
        let start = base();
        let mut pacer = Pacer::new(start);
        let mut ticks = 0_u32;
        for (rest, late, woken) in steps {
            // A talk spurt of three ticks, silence of two, a rest.
            let mut now = start;
            for quiet in [false, false, false, true, true] {
                now = pacer.deadline() + ms(late);
                ticks += 1 + pacer.ticked(now, quiet);
            }
            let until = pacer.rest_until(20);
            ticks += if woken {
                pacer.woken((now + ms(rest)).min(until))
            } else {
                pacer.rested(until + ms(late))
            };
            let clock = pacer.deadline() - start;
            let counted = TICK * ticks;
            prop_assert!(counted >= clock && counted <= clock + TICK, "{counted:?} at {clock:?}");
        }
    }
}
