//! The dialogues added up: figures, the table, the comparison with an older report, thresholds.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::{Deserialize, Serialize};

use crate::eval::{
    Evaluated,
    judge::{Judged, Sound, Turn},
};

/// A measured quantity in ms.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spread {
    pub count: usize,
    pub mean: f64,
    pub p50: f64,
    pub p95: f64,
}

impl Spread {
    pub fn of(values: impl IntoIterator<Item = u64>) -> Self {
        let mut values: Vec<u64> = values.into_iter().collect();
        values.sort_unstable();
        let Some(last) = values.len().checked_sub(1) else { return Self::default() };
        let at = |share: f64| values[(last as f64 * share).round() as usize] as f64;
        let mean = values.iter().sum::<u64>() as f64 / values.len() as f64;
        Self { count: values.len(), mean, p50: at(0.5), p95: at(0.95) }
    }
}

/// The turns of one kind, or all of them.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Turns {
    pub turns: usize,
    /// Taken before their true end, in percent.
    pub cut_off_percent: f64,
    /// The agent was heard before their true end, in percent.
    pub talked_over_percent: f64,
    /// Never taken, in percent.
    pub missed_percent: f64,
    /// From the true end until the turn was taken.
    pub wait: Spread,
}

impl Turns {
    fn of<'a>(turns: impl Iterator<Item = &'a Turn>) -> Self {
        let turns: Vec<&Turn> = turns.collect();
        let count = |is: fn(&Turn) -> bool| turns.iter().filter(|turn| is(turn)).count();
        let percent = |is: fn(&Turn) -> bool| percent(count(is), turns.len());
        Self {
            turns: turns.len(),
            cut_off_percent: percent(|turn| turn.cut_off),
            talked_over_percent: percent(|turn| turn.talked_over),
            missed_percent: percent(|turn| turn.wait_ms.is_none()),
            wait: Spread::of(turns.iter().filter_map(|turn| turn.wait_ms)),
        }
    }
}

/// What a set of dialogues came to.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub version: String,
    pub detection: String,
    pub dialogues: usize,
    pub all: Turns,
    pub by_label: BTreeMap<String, Turns>,
    /// From the start of a true interruption until the agent was silent.
    pub silence: Spread,
    /// The same beyond the least that tells an interruption: enough speech, and a word that says
    /// more than that the user listens.
    pub silence_after_minimum: Spread,
    /// True interruptions that did not stop the agent, in percent.
    pub missed_interruptions_percent: f64,
    /// Noises and backchannels that stopped the agent, in percent of those made while it spoke.
    pub false_interruptions_percent: f64,
    pub sounds: usize,
    /// By what sound: how many there were, how many stopped the agent.
    pub sounds_by_label: BTreeMap<String, (usize, usize)>,
    /// All stops for nothing, echo and background included, a minute of the agent's speech.
    pub false_interruptions_per_minute: f64,
    /// True interruptions in which the agent went on, in percent.
    pub false_resumes_percent: f64,
    /// From the true end to the agent's first sound, and its stages.
    pub response: Spread,
    pub llm: Spread,
    pub tts: Spread,
    pub played_ms: u64,
    /// Virtual time by real time.
    pub speed: f64,
    pub turns: Vec<Named<Turn>>,
    pub stops: Vec<Named<Sound>>,
}

/// Something of one dialogue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Named<T> {
    pub dialogue: String,
    #[serde(flatten)]
    pub what: T,
}

/// What a report may not fall short of; what is missing is not asked for.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Thresholds {
    pub cut_off_percent: f64,
    pub missed_percent: f64,
    pub mean_wait_ms: f64,
    pub false_interruptions_percent: f64,
    pub missed_interruptions_percent: f64,
    pub silence_after_minimum_p95_ms: f64,
    pub false_resumes_percent: f64,
    /// Virtual by real time, which a busy machine spoils: not asked for unless written.
    pub speed: f64,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            cut_off_percent: 10.0,
            missed_percent: 1.0,
            mean_wait_ms: 500.0,
            false_interruptions_percent: 2.0,
            missed_interruptions_percent: 2.0,
            silence_after_minimum_p95_ms: 100.0,
            false_resumes_percent: 2.0,
            speed: 0.0,
        }
    }
}

impl Report {
    pub fn new(evaluated: &Evaluated, detection: &str) -> Self {
        let Evaluated { dialogues, played, took } = evaluated;
        let turns = || dialogues.iter().flat_map(|judged| &judged.turns);
        let sounds = || dialogues.iter().flat_map(|judged| &judged.sounds);
        let mut labels: Vec<&str> = turns().map(|turn| turn.label.as_str()).collect();
        labels.sort_unstable();
        labels.dedup();
        let interrupting = || turns().filter(|turn| turn.interrupts);
        let beyond = turns()
            .filter(|turn| was_silenced(turn))
            .filter_map(|turn| Some(turn.silence_ms?.saturating_sub(turn.telling_ms)));
        let mut sounds_by_label: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        for sound in sounds() {
            let of = sounds_by_label.entry(sound.label.clone()).or_default();
            of.0 += 1;
            of.1 += usize::from(sound.stopped_agent);
        }
        let stopped = sounds().filter(|sound| sound.stopped_agent).count();
        let unprovoked: u32 = dialogues.iter().map(|judged| judged.unprovoked).sum();
        let agent_ms: u64 = dialogues.iter().map(|judged| judged.agent_ms).sum();
        let missed = interrupting().filter(|turn| !was_silenced(turn)).count();
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            detection: detection.to_owned(),
            dialogues: dialogues.len(),
            all: Turns::of(turns()),
            by_label: labels
                .into_iter()
                .map(|label| {
                    (label.to_owned(), Turns::of(turns().filter(move |turn| turn.label == label)))
                })
                .collect(),
            silence: Spread::of(turns().filter(|t| was_silenced(t)).filter_map(|t| t.silence_ms)),
            silence_after_minimum: Spread::of(beyond),
            missed_interruptions_percent: percent(missed, interrupting().count()),
            false_interruptions_percent: percent(stopped, sounds().count()),
            sounds: sounds().count(),
            sounds_by_label,
            false_interruptions_per_minute: per_minute(stopped + unprovoked as usize, agent_ms),
            false_resumes_percent: percent(
                interrupting().filter(|turn| turn.false_resume).count(),
                interrupting().count(),
            ),
            response: Spread::of(turns().filter_map(|turn| turn.response_ms)),
            llm: Spread::of(turns().filter_map(|turn| turn.llm_ms)),
            tts: Spread::of(turns().filter_map(|turn| turn.tts_ms)),
            played_ms: played.as_millis() as u64,
            speed: played.as_secs_f64() / took.as_secs_f64().max(0.001),
            turns: named(dialogues, |judged| &judged.turns),
            stops: named(dialogues, |judged| &judged.sounds)
                .into_iter()
                .filter(|sound| sound.what.stopped_agent)
                .collect(),
        }
    }

    /// What is worse than it may be, one sentence each.
    pub fn faults(&self, allowed: &Thresholds) -> Vec<String> {
        let most = [
            ("turns cut off, %", self.all.cut_off_percent, allowed.cut_off_percent),
            ("turns missed, %", self.all.missed_percent, allowed.missed_percent),
            ("mean wait, ms", self.all.wait.mean, allowed.mean_wait_ms),
            (
                "false interruptions, %",
                self.false_interruptions_percent,
                allowed.false_interruptions_percent,
            ),
            (
                "missed interruptions, %",
                self.missed_interruptions_percent,
                allowed.missed_interruptions_percent,
            ),
            (
                "interruption to silence beyond the minimum, p95, ms",
                self.silence_after_minimum.p95,
                allowed.silence_after_minimum_p95_ms,
            ),
            ("false resumes, %", self.false_resumes_percent, allowed.false_resumes_percent),
        ];
        let mut faults: Vec<String> = most
            .into_iter()
            .filter(|(_, is, may)| is > may)
            .map(|(what, is, may)| format!("{what}: {is:.1}, at most {may:.1} allowed"))
            .collect();
        if self.speed < allowed.speed {
            faults.push(format!(
                "speed: {:.0} × real time, at least {:.0} wanted",
                self.speed, allowed.speed
            ));
        }
        faults
    }

    /// The figures that are compared: what it is, its value, whether less is better.
    fn figures(&self) -> Vec<(&'static str, f64)> {
        vec![
            ("turns cut off, %", self.all.cut_off_percent),
            ("  talked over, %", self.all.talked_over_percent),
            ("turns missed, %", self.all.missed_percent),
            ("wait after the true end, mean, ms", self.all.wait.mean),
            ("  p50, ms", self.all.wait.p50),
            ("  p95, ms", self.all.wait.p95),
            ("false interruptions, %", self.false_interruptions_percent),
            ("  a minute of agent speech", self.false_interruptions_per_minute),
            ("missed interruptions, %", self.missed_interruptions_percent),
            ("interruption to silence, p50, ms", self.silence.p50),
            ("  beyond the minimum, p95, ms", self.silence_after_minimum.p95),
            ("false resumes, %", self.false_resumes_percent),
            ("response after the true end, p50, ms", self.response.p50),
            ("  p95, ms", self.response.p95),
            ("  model's first text, p50, ms", self.llm.p50),
            ("  voice's first audio, p50, ms", self.tts.p50),
        ]
    }

    /// For a terminal; beside an older report where one is given.
    pub fn table(&self, old: Option<&Self>) -> String {
        let mut out = String::new();
        let _ = writeln!(
            out,
            "{} dialogues, {} turns, {} sounds; {}; {:.0} s of talk at {:.0} × real time\n",
            self.dialogues,
            self.all.turns,
            self.sounds,
            self.detection,
            self.played_ms as f64 / 1_000.0,
            self.speed,
        );
        let before = old.map(Self::figures);
        for (n, (what, is)) in self.figures().into_iter().enumerate() {
            let _ = write!(out, "{what:<40}{is:>9.1}");
            if let Some((_, was)) = before.as_ref().and_then(|before| before.get(n)) {
                let _ = write!(out, "{was:>9.1}{:>+9.1}", is - was);
            }
            out.push('\n');
        }
        let _ = writeln!(
            out,
            "\n{:<16}{:>7}{:>10}{:>10}{:>10}{:>10}",
            "turns", "count", "cut off", "missed", "wait", "p95"
        );
        for (label, turns) in &self.by_label {
            let _ = writeln!(
                out,
                "{label:<16}{:>7}{:>9.1}%{:>9.1}%{:>10.0}{:>10.0}",
                turns.turns,
                turns.cut_off_percent,
                turns.missed_percent,
                turns.wait.mean,
                turns.wait.p95
            );
        }
        let _ = writeln!(out, "\n{:<16}{:>7}{:>16}", "sounds", "count", "stopped agent");
        for (label, (count, stopped)) in &self.sounds_by_label {
            let _ = writeln!(out, "{label:<16}{count:>7}{stopped:>16}");
        }
        out
    }
}

fn was_silenced(turn: &Turn) -> bool {
    let length = turn.end_ms.saturating_sub(turn.start_ms);
    turn.silence_ms.is_some_and(|ms| ms <= length.max(1_500))
}

fn named<'a, T: Clone + 'a>(
    dialogues: &'a [Judged],
    of: impl Fn(&'a Judged) -> &'a [T],
) -> Vec<Named<T>> {
    dialogues
        .iter()
        .flat_map(|judged| {
            of(judged)
                .iter()
                .map(|what| Named { dialogue: judged.name.clone(), what: what.clone() })
        })
        .collect()
}

fn percent(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 }
}

fn per_minute(count: usize, ms: u64) -> f64 {
    if ms == 0 { 0.0 } else { count as f64 * 60_000.0 / ms as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_names_the_middle_and_the_slow_end() {
        let spread = Spread::of((1..=100).rev());
        assert_eq!((spread.count, spread.p50, spread.p95), (100, 51.0, 95.0));
        assert!((spread.mean - 50.5).abs() < 1e-9);
        assert_eq!(Spread::of([]), Spread::default());
    }

    #[test]
    fn a_report_that_falls_short_says_in_what() {
        let good = Report { speed: 1_000.0, ..Report::default() };
        assert!(good.faults(&Thresholds::default()).is_empty());
        let all = Turns { cut_off_percent: 30.0, ..Turns::default() };
        let bad = Report { all, ..good };
        let faults = bad.faults(&Thresholds::default());
        assert_eq!(faults, ["turns cut off, %: 30.0, at most 10.0 allowed"]);
    }

    #[test]
    fn an_older_report_is_shown_beside() {
        let old = Report::default();
        let all = Turns { cut_off_percent: 12.5, ..Turns::default() };
        let table = Report { all, ..Report::default() }.table(Some(&old));
        let line = table.lines().find(|line| line.starts_with("turns cut off")).unwrap();
        let cells: Vec<_> = line.split_whitespace().rev().take(3).collect();
        assert_eq!(cells, ["+12.5", "0.0", "12.5"]);
    }

    #[test]
    fn a_report_is_read_back_from_its_json() {
        let turn = Turn { label: "plain".into(), ..Turn::default() };
        let report =
            Report { turns: vec![Named { dialogue: "x".into(), what: turn }], ..Report::default() };
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    }
}
