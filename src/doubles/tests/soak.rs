//! Many turns with random faults of every kind: nothing stuck, no final lost, no memory kept.

use super::*;
use crate::doubles::faults::{Fault, Faulty};

/// Turns in one call.
const TURNS: usize = 20;

/// Numbers that look random and are the same each time (a linear congruential generator).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// One stream in a hundred goes wrong.
fn faulty<S: Faulty>(mut script: S, random: &mut Random, at: fn(u64) -> S::At) -> S {
    for _ in 0..4 * TURNS {
        let fault = if random.below(100) > 0 {
            Fault::None
        } else {
            let at = at(random.below(12));
            match random.below(6) {
                0 => Fault::Refuse { status: 500, retry_after: None },
                1 => Fault::Disconnect(at),
                2 => Fault::Stall(at),
                3 => Fault::Malformed(at),
                4 => Fault::Fail(at),
                _ => Fault::Disorder(at),
            }
        };
        script = script.fault(fault);
    }
    script
}

/// What the process holds, in MB (proc(5), `statm`); 0 where the system does not tell.
fn resident_mb() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<usize>().ok());
    pages.unwrap_or(0) * 4_096 / 1_000_000
}

/// Turns enough for memory to tell something.
const MANY: usize = 1_000;
/// How much the process may hold more at the end than after the first tenth, in MB.
const GROWTH_MB: usize = 10;

/// `ANTIPHON_TEST_SOAK_TURNS` turns; a few where nobody says.
#[tokio::test(start_paused = true)]
async fn turns_with_random_faults_leave_nothing_stuck_and_lose_no_final() {
    let turns = std::env::var("ANTIPHON_TEST_SOAK_TURNS").ok().and_then(|it| it.parse().ok());
    let turns: usize = turns.unwrap_or(2 * TURNS);
    let agent = agent(&format!("{ALONE}{BEHIND}"));
    let mut random = Random(7);
    let (mut done, mut apologies, mut answers) = (0, 0, 0);
    let mut warm_mb = None;
    while done < turns {
        let said: Vec<String> = (0..TURNS).map(|nth| format!("question number {nth}")).collect();
        let mut script = Script::new(said.iter().map(String::as_str), []);
        let tokens = |at: u64| at as usize;
        let audio = |at: u64| Duration::from_millis(at * 150);
        // A recogniser has one connection a call: its faults come far apart in the audio.
        let calls = |at: u64| Duration::from_millis(at * 9_000);
        script.llm = faulty(script.llm, &mut random, tokens);
        script.tts = faulty(script.tts, &mut random, audio);
        if random.below(5) == 0 {
            script.stt = faulty(script.stt, &mut random, calls)
                .disconnect_after(Duration::from_millis(random.below(100_000)));
        }
        let (samples, ends) = caller(TURNS, Duration::from_secs(9));
        let call = run(&agent, script, samples, &ends).await;
        let heard = call.said(SpeakerKind::User).join(" ");
        for said in &said {
            assert!(heard.contains(said.as_str()), "{said} was lost: {call:#?}");
        }
        assert_eq!(call.ended, Some(AgentState::Idle), "{call:#?}");
        assert!(call.silences.iter().all(Option::is_some), "a turn was silent: {call:#?}");
        apologies += call.apologies;
        answers += call.said(SpeakerKind::Agent).len();
        done += TURNS;
        if done * 10 >= turns {
            warm_mb.get_or_insert_with(resident_mb);
        }
        if done.is_multiple_of(MANY) {
            println!("{done} turns, {} MB", resident_mb());
        }
    }
    let (from_mb, to_mb) = (warm_mb.unwrap_or(0), resident_mb());
    println!("{done} turns, {answers} answers, {apologies} apologies, {from_mb} to {to_mb} MB");
    assert!(turns < MANY || to_mb <= from_mb + GROWTH_MB, "memory grows");
    assert!(apologies as usize * 50 <= done, "{apologies} apologies in {done} turns");
}
