//! How busy this worker is: its own CPU time and its jobs, never the machine's load.
//!
//! A worker that reported the whole machine's CPU would be refused jobs because of its neighbours.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// How often [`CpuAverage::sample`] is to be called.
pub const SAMPLE_INTERVAL: Duration = Duration::from_millis(500);
/// Samples that make up the average: 2.5 s, as often as the load is reported.
const SAMPLES: usize = 5;

/// CPU use of the process over the last five samples.
#[derive(Debug)]
pub struct CpuAverage {
    cores: f32,
    /// (when, CPU time so far); one more than `SAMPLES`, for the first difference.
    samples: VecDeque<(Instant, Duration)>,
}

impl CpuAverage {
    /// `cores`: how many the process may use; at least 1 is assumed.
    pub fn new(cores: usize) -> Self {
        Self { cores: cores.max(1) as f32, samples: VecDeque::with_capacity(SAMPLES + 2) }
    }

    /// Takes the CPU time that the process has used so far; returns its share of the cores, 0..1.
    pub fn sample(&mut self, cpu_time: Duration, now: Instant) -> f32 {
        self.samples.push_back((now, cpu_time));
        if self.samples.len() > SAMPLES + 1 {
            self.samples.pop_front();
        }
        let Some(&(since, used)) = self.samples.front() else { return 0.0 };
        let passed = now.saturating_duration_since(since).as_secs_f32();
        if passed <= 0.0 {
            return 0.0;
        }
        unit(cpu_time.saturating_sub(used).as_secs_f32() / passed / self.cores)
    }
}

/// Into 0..1; what is no number counts as 0.
pub fn unit(load: f32) -> f32 {
    if load.is_nan() { 0.0 } else { load.clamp(0.0, 1.0) }
}

/// The load of a worker that uses `cpu` (0..1), runs `jobs` and has said yes to `reserved` more.
///
/// Jobs alone reach the threshold exactly at `max_jobs`. A promised job counts as that share of
/// CPU until it runs: without this a burst would be accepted whole before the first job is felt.
pub fn combined(cpu: f32, jobs: usize, reserved: usize, max_jobs: usize, threshold: f32) -> f32 {
    let per_job = threshold / max_jobs.max(1) as f32;
    let by_cpu = unit(cpu) + reserved as f32 * per_job;
    let by_jobs = (jobs + reserved) as f32 * per_job;
    unit(by_cpu.max(by_jobs))
}

/// The CPU time this process has used, if the system tells.
#[cfg(target_os = "linux")]
pub fn process_cpu_time() -> Option<Duration> {
    parse_stat(&std::fs::read_to_string("/proc/self/stat").ok()?)
}

/// Other systems go by the number of jobs.
#[cfg(not(target_os = "linux"))]
pub fn process_cpu_time() -> Option<Duration> {
    None
}

/// `utime` + `stime` of proc_pid_stat(5), fields 14 and 15, in clock ticks: USER_HZ, which is 100
/// on every architecture that is still built for. The name in field 2 may itself hold spaces and
/// parentheses, so counting starts behind the last `)`.
#[cfg(any(target_os = "linux", test))]
fn parse_stat(stat: &str) -> Option<Duration> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Duration::from_millis(user.checked_add(system)?.checked_mul(10)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f32, b: f32) -> bool {
        (a - b).abs() < 1e-6
    }

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn half_of_two_cores_is_a_load_of_a_half() {
        let mut cpu = CpuAverage::new(2);
        let start = crate::clock::now();
        assert!(close(cpu.sample(MS(1_000), start), 0.0));
        assert!(close(cpu.sample(MS(1_500), start + MS(500)), 0.5));
    }

    #[test]
    fn a_peak_is_forgotten_after_five_samples() {
        let mut cpu = CpuAverage::new(1);
        let start = crate::clock::now();
        cpu.sample(MS(0), start);
        assert!(close(cpu.sample(MS(500), start + MS(500)), 1.0));
        let later: Vec<f32> =
            (2..=6).map(|n| cpu.sample(MS(500), start + n * SAMPLE_INTERVAL)).collect();
        assert!(close(later[3], 0.2) && close(later[4], 0.0), "{later:?}");
    }

    #[test]
    fn time_that_stands_still_or_runs_back_is_no_load() {
        let mut cpu = CpuAverage::new(1);
        let start = crate::clock::now();
        cpu.sample(MS(900), start);
        assert!(close(cpu.sample(MS(900), start), 0.0));
        assert!(close(cpu.sample(MS(100), start + MS(500)), 0.0));
    }

    #[test]
    fn jobs_alone_reach_the_threshold_at_the_maximum() {
        assert!(close(combined(0.0, 9, 0, 10, 0.7), 0.63));
        assert!(close(combined(0.0, 10, 0, 10, 0.7), 0.7));
        assert!(close(combined(0.0, 10_000, 0, 10, 0.7), 1.0));
    }

    #[test]
    fn promised_jobs_count_on_top_of_the_cpu() {
        assert!(close(combined(0.5, 2, 2, 10, 0.7), 0.64));
        assert!(close(combined(f32::NAN, 0, 0, 0, 0.7), 0.0));
    }

    #[test]
    fn a_process_name_with_spaces_and_parentheses_is_read_over() {
        let stat = "42 (a) b (c) S 1 42 42 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 4 0 1 2 3";
        assert_eq!(parse_stat(stat), Some(MS(3_000)));
        assert_eq!(parse_stat("42 (x) S 1"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_a_cpu_time() {
        assert!(process_cpu_time().is_some());
    }
}
