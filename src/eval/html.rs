//! The report as one HTML page without scripts: the figures, and a time line of every dialogue
//! (speech, detector, transcripts, states, agent) as inline SVG.

use std::{fmt::Write as _, ops::Range};

use crate::{
    eval::{judge::Judged, report::Report},
    session::{
        command::{Command, Metric},
        state::AgentState,
    },
    transcript::segment::SpeakerKind,
};

const PX_PER_S: f64 = 40.0;
const LANE: f64 = 20.0;
const LEFT: f64 = 80.0;
const LANES: [&str; 6] = ["said", "detector", "heard as", "state", "agent", "taken"];

const STYLE: &str = "body{font:14px/1.4 system-ui,sans-serif;margin:2em;color:#222;background:#fff}\
pre{background:#f5f5f5;padding:1em;overflow-x:auto}figure{margin:0 0 1.5em;overflow-x:auto}\
figcaption{font-weight:600}figcaption b{color:#b00}svg{font:10px system-ui,sans-serif}\
.turn{fill:#4a7fb5}.sound{fill:#c9a227}.vad{fill:#9bb}.agent{fill:#5a9a68}.idle{fill:#eee}\
.listening{fill:#cde0f2}.thinking{fill:#f5e3b3}.speaking{fill:#cfe8d3}.late{stroke:#2a2}\
.early{stroke:#c00}.stop{stroke:#c60}line{stroke-width:2}.end{stroke:#14406b;stroke-dasharray:2}";

/// The page.
pub fn page(report: &Report, dialogues: &[Judged]) -> String {
    let mut out = String::from("<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\">");
    let _ = write!(
        out,
        "<title>antiphon eval</title><style>{STYLE}</style><h1>Turn-taking</h1><pre>{}</pre>\
         <p>Blue: a turn, ended where the dashes are. Yellow: a sound that asks for nothing. Below: \
         what the detector heard, what recognition made of it, the agent's state, its voice, and \
         where a turn was taken: green after its end, red before it, orange where the agent was \
         stopped.</p>",
        escape(&report.table(None))
    );
    for judged in dialogues {
        figure(&mut out, judged);
    }
    out.push_str("</html>\n");
    out
}

fn figure(out: &mut String, judged: &Judged) {
    let width = LEFT + judged.duration_ms as f64 / 1_000.0 * PX_PER_S;
    let height = LANE * (LANES.len() + 1) as f64;
    let cut_off = judged.turns.iter().filter(|turn| turn.cut_off).count();
    let stopped = judged.sounds.iter().filter(|sound| sound.stopped_agent).count();
    let _ = write!(
        out,
        "<figure><figcaption>{}: {} turns, <b>{cut_off} cut off, {stopped} false interruptions</b>\
         </figcaption><svg width=\"{width:.0}\" height=\"{height:.0}\" role=\"img\">",
        escape(&judged.name),
        judged.turns.len(),
    );
    for (lane, name) in LANES.iter().enumerate() {
        let y = (lane as f64 + 0.7) * LANE;
        let _ = write!(out, "<text x=\"0\" y=\"{y:.0}\">{name}</text>");
    }
    for second in 0..=judged.duration_ms / 5_000 {
        let (x, y) = (place(second * 5_000), LANE * (LANES.len() as f64 + 0.7));
        let _ = write!(out, "<text x=\"{x:.0}\" y=\"{y:.0}\">{} s</text>", second * 5);
    }
    let lived = &judged.lived;
    for turn in &judged.turns {
        let title = format!("{}: {} (wait {:?} ms)", turn.label, turn.text, turn.wait_ms);
        bar(out, 0, turn.start_ms..turn.end_ms, "turn", &title);
        mark(out, 0..LANES.len(), turn.end_ms, "end", "true end");
    }
    for sound in &judged.sounds {
        bar(out, 0, sound.at_ms..sound.at_ms + 600, "sound", &sound.label);
    }
    for range in &lived.vad {
        bar(out, 1, range.clone(), "vad", "speech by the detector");
    }
    for range in &lived.agent {
        bar(out, 4, range.clone(), "agent", "the agent's voice");
    }
    let mut state = (0, AgentState::Idle);
    for (at, command) in &lived.log {
        match command {
            Command::SetState(to) => {
                bar(out, 3, state.0..*at, state.1.as_str(), state.1.as_str());
                state = (*at, *to);
            }
            Command::Transcript(row) if row.kind == SpeakerKind::User && row.is_final => {
                let (x, y) = (place(*at), 2.7 * LANE);
                let text = escape(&row.text);
                let _ = write!(out, "<text x=\"{x:.1}\" y=\"{y:.0}\">{text}</text>");
            }
            Command::Metric(Metric::EndpointingDelay { .. }) => {
                let early = judged.turns.iter().any(|t| t.start_ms < *at && *at < t.end_ms);
                let class = if early { "early" } else { "late" };
                mark(out, 5..6, *at, class, &format!("taken at {at} ms"));
            }
            Command::ClearPlayout { .. } => mark(out, 4..5, *at, "stop", "stopped"),
            _ => {}
        }
    }
    bar(out, 3, state.0..judged.duration_ms, state.1.as_str(), state.1.as_str());
    out.push_str("</svg></figure>\n");
}

fn place(ms: u64) -> f64 {
    LEFT + ms as f64 / 1_000.0 * PX_PER_S
}

fn bar(out: &mut String, lane: usize, range: Range<u64>, class: &str, title: &str) {
    let (x, end) = (place(range.start), place(range.end.max(range.start)));
    let _ = write!(
        out,
        "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{:.0}\" width=\"{:.1}\" height=\"{:.0}\">\
         <title>{}</title></rect>",
        lane as f64 * LANE + 2.0,
        end - x,
        LANE - 4.0,
        escape(title),
    );
}

fn mark(out: &mut String, lanes: Range<usize>, at: u64, class: &str, title: &str) {
    let x = place(at);
    let _ = write!(
        out,
        "<line class=\"{class}\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.0}\" y2=\"{:.0}\">\
         <title>{}</title></line>",
        lanes.start as f64 * LANE,
        lanes.end as f64 * LANE,
        escape(title),
    );
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "the agent speaks once")]
mod tests {
    use super::*;
    use crate::eval::{judge::Turn, run::Lived};

    #[test]
    fn the_page_draws_each_dialogue_and_trusts_no_text() {
        let turn = Turn { text: "<script>".into(), end_ms: 900, ..Turn::default() };
        let lived = Lived {
            agent: vec![1_000..2_000],
            log: vec![(950, Command::SetState(AgentState::Speaking))],
            ..Lived::default()
        };
        let judged = Judged {
            name: "quiet-00".into(),
            turns: vec![turn],
            sounds: Vec::new(),
            unprovoked: 0,
            agent_ms: 1_000,
            duration_ms: 3_000,
            lived,
        };
        let page = page(&Report::default(), &[judged]);
        assert!(page.contains("quiet-00") && page.contains("class=\"agent\""));
        assert!(page.contains("&lt;script&gt;") && !page.contains("<script>"));
    }
}
