//! What a person at a terminal sees of a call.

use std::io::{IsTerminal, Write};

use crate::{
    replay::report::Report,
    session::{command::Metric, ports::Shown, state::AgentState},
    transcript::segment::SpeakerKind,
};

/// Whether a stream takes colours: a terminal, and NO_COLOR is not set.
pub fn colours(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Shows a call as it happens: states, transcripts, latencies. Interims are shown on a terminal
/// only, where the next line replaces them.
#[derive(Debug)]
pub struct Live {
    colours: bool,
    terminal: bool,
    quiet: bool,
    interim: bool,
}

impl Live {
    /// `quiet`: shows nothing (a script reads JSON instead).
    pub fn new(quiet: bool) -> Self {
        let stdout = std::io::stdout();
        Self { colours: colours(&stdout), terminal: stdout.is_terminal(), quiet, interim: false }
    }

    pub fn line(&mut self, text: &str) {
        if !self.quiet {
            self.wipe();
            out(&format!("{text}\n"));
        }
    }

    pub fn show(&mut self, at_ms: u64, shown: &Shown) {
        if self.quiet {
            return;
        }
        match shown {
            Shown::State(state) => {
                let name = state.as_str().to_uppercase();
                let text = self.paint(state_colour(*state), &format!("● {name}"));
                self.at(at_ms, &text);
            }
            Shown::Transcript(segment) => {
                let who = match segment.kind {
                    SpeakerKind::User => self.paint("36", "caller"),
                    SpeakerKind::Agent => self.paint("35", " agent"),
                };
                if segment.is_final {
                    self.at(at_ms, &format!("{who}  {}", segment.text));
                } else if segment.text.is_empty() {
                    self.wipe();
                } else if self.terminal {
                    self.interim(at_ms, &format!("{who}  {}…", segment.text));
                }
            }
            Shown::Metric(metric) => {
                let text = self.paint("2", &metric_text(metric));
                self.at(at_ms, &text);
            }
            Shown::UserState(_) | Shown::Usage(_) => {}
        }
    }

    /// The call in one line.
    pub fn summary(&mut self, report: &Report) {
        let response = report.response_p50().map_or_else(
            || "nothing was answered".to_owned(),
            |p50| format!("response p50 {p50} ms (end of speech → first audio)"),
        );
        self.line(&format!(
            "\n{} turns answered, {response}, {} interruptions, {} apologies",
            report.turns.len(),
            report.interruptions,
            report.apologies
        ));
        if let Some(cost) = report.usage.cost_usd {
            self.line(&format!("used for ${cost:.4} at list prices"));
        }
    }

    fn at(&mut self, at_ms: u64, text: &str) {
        let time = self.paint("2", &format!("{:>7.2} s", at_ms as f64 / 1_000.0));
        self.line(&format!("{time}  {text}"));
    }

    fn interim(&mut self, at_ms: u64, text: &str) {
        self.wipe();
        let line = format!("{:>7.2} s  {text}", at_ms as f64 / 1_000.0);
        out(&line);
        self.interim = true;
    }

    fn wipe(&mut self) {
        if std::mem::take(&mut self.interim) {
            out("\r\x1b[2K");
        }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// How far long work has come: one line of stderr that replaces itself. A script's log gets none.
#[derive(Debug)]
pub struct Progress {
    terminal: bool,
}

impl Progress {
    pub fn on_stderr() -> Self {
        Self { terminal: std::io::stderr().is_terminal() }
    }

    pub fn show(&self, text: &str) {
        if self.terminal {
            let _ = write!(std::io::stderr().lock(), "\r\x1b[2K{text}");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.show("");
    }
}

const fn state_colour(state: AgentState) -> &'static str {
    match state {
        AgentState::Idle => "2",
        AgentState::Listening => "36",
        AgentState::Thinking => "33",
        AgentState::Speaking => "35",
    }
}

fn metric_text(metric: &Metric) -> String {
    match metric {
        Metric::EndpointingDelay { ms } => format!("end of turn after {ms} ms of silence"),
        Metric::Ttft { ms } => format!("first token after {ms} ms"),
        Metric::Ttfb { ms } => format!("first audio after {ms} ms"),
        Metric::ResponseLatency { ms } => format!("answered {ms} ms after the end of speech"),
        Metric::Interruption => "interrupted".to_owned(),
        Metric::FalseInterruption => "false interruption: the agent goes on".to_owned(),
        Metric::Apology => "the agent apologises".to_owned(),
    }
}

/// JSON for scripts.
pub fn json(value: &impl serde::Serialize) {
    if let Ok(text) = serde_json::to_string_pretty(value) {
        out(&format!("{text}\n"));
    }
}

/// Writes to stdout. A reader that has gone, such as `head`, misses the rest; the call goes on.
fn out(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}
