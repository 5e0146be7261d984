//! What happened in a dialogue against what its labels say should have.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    eval::{
        dialogue::{Clip, Dialogue, Kind},
        run::Lived,
    },
    session::{
        command::{Command, Metric},
        is_backchannel,
    },
};

/// Words of a sound may make the agent stop this long after its end.
const AFTERMATH_MS: u64 = 1_000;
/// A turn that has not been taken this long after its end was missed.
const MISSED_MS: u64 = 8_000;

/// One turn of the user, and what became of it; times in ms.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Turn {
    pub label: String,
    pub text: String,
    pub start_ms: u64,
    /// The true end.
    pub end_ms: u64,
    /// The turn was taken before its end.
    pub cut_off: bool,
    /// ... and the agent was heard before it.
    pub talked_over: bool,
    /// From the true end until the turn was taken; none: never.
    pub wait_ms: Option<u64>,
    /// From the true end to the agent's first sound.
    pub response_ms: Option<u64>,
    /// From asking the model to its first text, from there to the first audio.
    pub llm_ms: Option<u64>,
    pub tts_ms: Option<u64>,
    /// An interruption: from its start until the agent was silent.
    pub silence_ms: Option<u64>,
    /// ... and when it could be known for one: enough speech, and a word that says more than that
    /// the user listens, as early as recognition tells it.
    #[serde(default)]
    pub telling_ms: u64,
    /// The user spoke while the agent did.
    pub interrupts: bool,
    /// The agent went on in the middle of a true interruption.
    pub false_resume: bool,
}

/// A sound that should not have stopped the agent, made while it spoke.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sound {
    pub label: String,
    pub at_ms: u64,
    pub stopped_agent: bool,
}

/// One dialogue, judged.
#[derive(Debug)]
pub struct Judged {
    pub name: String,
    pub turns: Vec<Turn>,
    pub sounds: Vec<Sound>,
    /// Stops of the agent for nothing that was played to it: its own echo, or the background.
    pub unprovoked: u32,
    /// How long the agent spoke.
    pub agent_ms: u64,
    pub duration_ms: u64,
    /// For the drawing.
    pub lived: Lived,
}

/// Compares what happened with the labels.
pub fn judge(dialogue: &Dialogue, lived: Lived, min_interruption: Duration) -> Judged {
    let clips: Vec<(&Clip, u64)> = dialogue
        .label
        .clips
        .iter()
        .zip(&lived.clips)
        .filter_map(|(clip, begun)| Some((clip, (*begun)?)))
        .collect();
    let mut turns = Vec::new();
    let mut sounds = Vec::new();
    for (n, (clip, at)) in clips.iter().enumerate() {
        if clip.is_turn() {
            let next = clips[n + 1..].iter().find(|(clip, _)| clip.is_turn());
            let until = next.map_or(lived.duration_ms, |(_, at)| *at);
            let mut turn = turn(clip, *at, until, &lived);
            let telling = telling_word(clip).map_or(0, |ms| ms + dialogue.label.stt.interim_ms);
            turn.telling_ms = telling.max(min_interruption.as_millis() as u64);
            turns.push(turn);
        } else if speaks_at(&lived, *at) {
            let until = at + clip.length_ms() + AFTERMATH_MS;
            sounds.push(Sound {
                label: clip.label.clone(),
                at_ms: *at,
                stopped_agent: stops(&lived, *at, until).next().is_some(),
            });
        }
    }
    let provoked = |at: u64| {
        clips
            .iter()
            .any(|(clip, from)| (*from..from + clip.length_ms() + AFTERMATH_MS).contains(&at))
    };
    let unprovoked = stops(&lived, 0, lived.duration_ms).filter(|at| !provoked(*at)).count() as u32;
    Judged {
        name: dialogue.label.name.clone(),
        turns,
        sounds,
        unprovoked,
        agent_ms: lived.agent.iter().map(|range| range.end - range.start).sum(),
        duration_ms: lived.duration_ms,
        lived,
    }
}

fn turn(clip: &Clip, start_ms: u64, until: u64, lived: &Lived) -> Turn {
    let end_ms = start_ms + clip.end_ms;
    let metrics = |from: u64, to: u64| {
        lived.log.iter().filter_map(move |(at, command)| match command {
            Command::Metric(metric) if (from..to).contains(at) => Some((*at, *metric)),
            _ => None,
        })
    };
    let taken = |from, to| {
        metrics(from, to)
            .filter(|(_, metric)| matches!(metric, Metric::EndpointingDelay { .. }))
            .map(|(at, _)| at)
    };
    let interrupts = clip.kind == Kind::Interruption && speaks_at(lived, start_ms);
    let silent_at =
        lived.agent.iter().find(|range| range.contains(&start_ms)).map(|range| range.end);
    let taken_at = taken(end_ms, until.min(end_ms + MISSED_MS)).next();
    let heard_at = taken_at
        .and_then(|at| lived.agent.iter().find(|range| (at..until).contains(&range.start)))
        .map(|range| range.start);
    let mut llm_ms = None;
    let mut tts_ms = None;
    for (_, metric) in metrics(taken_at.unwrap_or(until), heard_at.unwrap_or(until)) {
        match metric {
            Metric::Ttft { ms } => llm_ms = Some(ms),
            Metric::Ttfb { ms } => tts_ms = Some(ms),
            _ => {}
        }
    }
    let resumed = lived.log.iter().any(|(at, command)| {
        matches!(command, Command::Resume { .. }) && (start_ms..end_ms).contains(at)
    });
    Turn {
        label: clip.label.clone(),
        text: clip.text(),
        start_ms,
        end_ms,
        cut_off: taken(start_ms, end_ms).next().is_some(),
        talked_over: lived.agent.iter().any(|range| start_ms < range.start && range.start < end_ms),
        wait_ms: taken_at.map(|at| at - end_ms),
        response_ms: heard_at.map(|at| at - end_ms),
        llm_ms,
        tts_ms,
        silence_ms: silent_at.filter(|_| interrupts).map(|at| at - start_ms),
        interrupts,
        telling_ms: 0,
        false_resume: interrupts && resumed,
    }
}

/// When the first word ends that is no sign of listening alone, in ms from the clip's start.
fn telling_word(clip: &Clip) -> Option<u64> {
    let mut said = String::new();
    clip.segments.iter().flatten().find_map(|word| {
        said.push_str(word.text.trim_end_matches([',', '.', '?', '!']));
        said.push(' ');
        (!is_backchannel(&said, "")).then_some(word.end_ms)
    })
}

fn speaks_at(lived: &Lived, at: u64) -> bool {
    lived.agent.iter().any(|range| range.contains(&at))
}

/// When the agent was made to fall silent.
fn stops(lived: &Lived, from: u64, until: u64) -> impl Iterator<Item = u64> {
    lived.log.iter().filter_map(move |(at, command)| {
        let stopped = matches!(command, Command::ClearPlayout { .. });
        let sounded = lived.agent.iter().any(|range| range.start < *at && *at <= range.end);
        (stopped && sounded && (from..until).contains(at)).then_some(*at)
    })
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "the agent speaks once")]
mod tests {
    use super::*;
    use crate::{
        eval::dialogue::{After, Label, Stt, Word},
        tts::SpeechId,
    };

    fn clip(kind: Kind, length: u64) -> Clip {
        let word = Word { text: "yes".into(), start_ms: 0, end_ms: length };
        Clip {
            kind,
            label: "plain".into(),
            after: After::Quiet,
            after_ms: 0,
            from_ms: 0,
            to_ms: length,
            segments: vec![vec![word]],
            end_ms: length,
            answer: None,
        }
    }

    fn dialogue(clips: Vec<Clip>) -> Dialogue {
        let stt = Stt { interim_ms: 100, finalize_ms: 100, endpointing_ms: 300 };
        let label = Label { name: "x".into(), stt, bed: None, echo: None, clips };
        Dialogue { label, samples: Vec::new() }
    }

    fn taken(at: u64) -> (u64, Command) {
        (at, Command::Metric(Metric::EndpointingDelay { ms: 0 }))
    }

    fn judged(clips: Vec<Clip>, lived: Lived) -> Judged {
        judge(&dialogue(clips), lived, Duration::from_millis(500))
    }

    #[test]
    fn a_turn_taken_before_its_end_is_cut_off_and_one_never_taken_is_missed() {
        let lived = Lived {
            clips: vec![Some(1_000), Some(10_000)],
            log: vec![taken(1_500), taken(2_400)],
            agent: vec![3_000..4_000],
            duration_ms: 30_000,
            ..Lived::default()
        };
        let judged = judged(vec![clip(Kind::Turn, 1_000), clip(Kind::Turn, 1_000)], lived);
        let (first, second) = (&judged.turns[0], &judged.turns[1]);
        assert!(first.cut_off && !first.talked_over);
        assert_eq!((first.wait_ms, first.response_ms), (Some(400), Some(1_000)));
        assert!(!second.cut_off);
        assert_eq!(second.wait_ms, None);
    }

    #[test]
    fn a_sound_counts_while_the_agent_speaks_and_only_if_it_stops_it() {
        let clear = |at| (at, Command::ClearPlayout { id: SpeechId(1) });
        let lived = Lived {
            clips: vec![Some(1_000), Some(5_000), Some(20_000)],
            agent: vec![500..5_600],
            log: vec![clear(5_600)],
            duration_ms: 30_000,
            ..Lived::default()
        };
        let judged = judged(vec![clip(Kind::Noise, 500); 3], lived);
        let stopped: Vec<_> = judged.sounds.iter().map(|sound| sound.stopped_agent).collect();
        assert_eq!(stopped, [false, true]);
        assert_eq!(judged.unprovoked, 0);
    }

    #[test]
    fn an_interruption_is_measured_from_its_start_to_silence() {
        let clear = (5_600, Command::ClearPlayout { id: SpeechId(1) });
        let lived = Lived {
            clips: vec![Some(5_000)],
            agent: vec![500..5_600],
            log: vec![clear, taken(6_500)],
            duration_ms: 30_000,
            ..Lived::default()
        };
        let judged = judged(vec![clip(Kind::Interruption, 1_000)], lived);
        assert_eq!(judged.turns[0].silence_ms, Some(600));
        assert!(judged.turns[0].interrupts && !judged.turns[0].false_resume);
    }
}
