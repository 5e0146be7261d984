//! A process of this bench: lines in, lines out, and what Linux says of it.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{ChildStdin, ChildStdout, Command},
};

/// What may take long is joining rooms.
const PATIENCE: Duration = Duration::from_mins(1);
/// Of the times in `/proc/PID/stat` (`USER_HZ`, fixed by the kernel's interface).
const TICKS_A_SECOND: f64 = 100.0;

/// Another part of this bench. It ends when dropped.
pub struct Child {
    process: tokio::process::Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Child {
    pub fn start(role: &str, url: &str) -> Self {
        let program = std::env::current_exe().expect("this program");
        let mut process = Command::new(program)
            .args(["--role", role, "--url", url])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("a process");
        let input = process.stdin.take().expect("its input");
        let output = BufReader::new(process.stdout.take().expect("its output")).lines();
        Self { process, input, output }
    }

    /// Says a line and gives the line said in answer.
    pub async fn ask(&mut self, line: &str) -> String {
        self.input.write_all(format!("{line}\n").as_bytes()).await.expect("it listens");
        let answer = tokio::time::timeout(PATIENCE, self.output.next_line()).await;
        let answer = answer.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
        answer.ok().flatten().unwrap_or_else(|| {
            eprintln!("no answer to {line:?}");
            std::process::exit(1)
        })
    }

    pub async fn end(mut self) {
        drop(self.input);
        if tokio::time::timeout(PATIENCE, self.process.wait()).await.is_err() {
            let _ = self.process.kill().await;
        }
    }

    pub fn usage(&self) -> Usage {
        Usage::of(self.process.id().expect("it runs"))
    }
}

/// What a process has used so far.
#[derive(Debug)]
pub struct Usage {
    at: Instant,
    cpu: f64,
    pub pss_mb: f64,
    pub threads: usize,
}

impl Usage {
    pub fn of(pid: u32) -> Self {
        let read = |name: &str| {
            std::fs::read_to_string(format!("/proc/{pid}/{name}")).expect("Linux says")
        };
        let stat = read("stat");
        // The name before may hold anything, parentheses too.
        let fields: Vec<f64> = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .map(|field| field.parse().unwrap_or_default())
            .collect();
        let field = |number: usize| fields.get(number - 3).copied().unwrap_or_default();
        let pss_kb: f64 = read("smaps_rollup")
            .lines()
            .find_map(|line| line.strip_prefix("Pss:"))
            .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .expect("a PSS");
        Self {
            at: antiphon::clock::now(),
            cpu: (field(14) + field(15)) / TICKS_A_SECOND,
            pss_mb: pss_kb / 1_024.0,
            threads: field(20) as usize,
        }
    }

    /// The share of one core between two looks.
    pub fn cpu_percent(before: &Self, after: &Self) -> f64 {
        (after.cpu - before.cpu) / (after.at - before.at).as_secs_f64() * 100.0
    }
}
