//! A WAV in virtual time: its samples through the real detector, then the machine against scripted
//! providers. Deterministic, and hundreds of times faster than real time.

use serde::Deserialize;

use crate::{
    audio::vad::{self, VadConfig, VadError, VoiceDetector},
    replay::report::Report,
    session::{
        command::Command,
        input::{Input, VadEvent},
        ports::Shown,
        settings::Settings,
        simulation::{CALLER, Call, ms},
        state::{AgentState, CloseReason},
    },
};

/// The rate of the reply, in Hz.
pub const REPLY_RATE: u32 = 16_000;

/// Something said in a WAV, as recognition would give it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Utterance {
    pub start_ms: u64,
    pub end_ms: u64,
    pub text: String,
}

/// What is said in a WAV: the `NAME.expected.json` beside it.
#[derive(Debug, Default, Deserialize)]
pub struct Expected {
    pub utterances: Vec<Utterance>,
}

/// What came of a simulated replay.
#[derive(Debug)]
pub struct Simulated {
    pub report: Report,
    /// A tone for as long as the agent spoke: mono s16 at [`REPLY_RATE`].
    pub reply: Vec<i16>,
}

/// Plays `samples` (mono s16 at 16 kHz) to the machine. Where `said` is empty, whatever the
/// detector takes for speech is an utterance without a name.
pub fn run(
    source: &str,
    samples: &[i16],
    settings: Settings,
    vad: VadConfig,
    said: &[Utterance],
    mut observe: impl FnMut(u64, &Shown),
) -> Result<Simulated, VadError> {
    let detected = detect(samples, vad)?;
    let mut call = Call::new(settings);
    for (at, event) in &detected {
        call.input_at(ms(*at), Input::Vad { speaker: CALLER, event: *event });
    }
    let unnamed;
    let said = if said.is_empty() {
        unnamed = unnamed_utterances(&detected);
        &unnamed
    } else {
        said
    };
    for utterance in said {
        call.user_whispers(&utterance.text, ms(utterance.start_ms)..ms(utterance.end_ms));
    }
    call.run_until(ms(samples.len() as u64 * 1_000 / u64::from(vad::SAMPLE_RATE)));
    call.run_to_end();
    let close = Input::Close { reason: CloseReason::InputEnded };
    call.input_at(call.now(), close);
    call.run_until(call.now() + ms(1));

    let mut report = Report::new(source, "virtual");
    let mut reply = Reply::default();
    for (at, command) in call.log() {
        let at_ms = at.as_millis() as u64;
        let Some(shown) = shown(command) else { continue };
        if let Shown::State(state) = shown {
            reply.state(at_ms, state);
        }
        report.take(at_ms, &shown);
        observe(at_ms, &shown);
    }
    report.duration_ms = call.now().as_millis() as u64;
    Ok(Simulated { reply: reply.render(report.duration_ms), report })
}

fn detect(samples: &[i16], config: VadConfig) -> Result<Vec<(u64, VadEvent)>, VadError> {
    let mut detector = VoiceDetector::new(config)?;
    let mut events = Vec::new();
    for frame in samples.chunks(160) {
        detector.push(frame, |event, at| events.push((at, event)));
    }
    detector.end(|event, at| events.push((at, event)));
    Ok(events)
}

fn unnamed_utterances(detected: &[(u64, VadEvent)]) -> Vec<Utterance> {
    let mut utterances = Vec::new();
    let mut started = None;
    for (at, event) in detected {
        match *event {
            VadEvent::Faint => {}
            VadEvent::Started { speech_ms } => started = Some(at.saturating_sub(speech_ms.into())),
            VadEvent::Ended { silence_ms } => {
                if let Some(start_ms) = started.take() {
                    let end_ms = at.saturating_sub(silence_ms.into());
                    let text = format!("utterance {}", utterances.len() + 1);
                    utterances.push(Utterance { start_ms, end_ms, text });
                }
            }
        }
    }
    utterances
}

/// What a driver would show.
pub fn shown(command: &Command) -> Option<Shown> {
    Some(match command {
        Command::SetState(state) => Shown::State(*state),
        Command::SetUserState(state) => Shown::UserState(*state),
        Command::Transcript(segment) => Shown::Transcript(segment.clone()),
        Command::Metric(metric) => Shown::Metric(*metric),
        Command::Usage(usage) => Shown::Usage(*usage),
        _ => return None,
    })
}

#[derive(Debug, Default)]
struct Reply {
    stretches: Vec<(u64, u64)>,
    speaking_since: Option<u64>,
}

impl Reply {
    fn state(&mut self, at_ms: u64, state: AgentState) {
        if state == AgentState::Speaking {
            self.speaking_since.get_or_insert(at_ms);
        } else if let Some(from) = self.speaking_since.take() {
            self.stretches.push((from, at_ms));
        }
    }

    fn render(self, duration_ms: u64) -> Vec<i16> {
        let at = |ms: u64| usize::try_from(ms * u64::from(REPLY_RATE) / 1_000).unwrap_or(0);
        let mut samples = vec![0; at(duration_ms)];
        let open = self.speaking_since.map(|from| (from, duration_ms));
        for (from, to) in self.stretches.into_iter().chain(open) {
            let end = at(to).min(samples.len());
            let stretch = samples.get_mut(at(from)..end).unwrap_or_default();
            for (n, sample) in stretch.iter_mut().enumerate() {
                let turns = n as f32 * 220.0 / REPLY_RATE as f32;
                *sample = ((turns * std::f32::consts::TAU).sin() * 4_000.0) as i16;
            }
        }
        samples
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_wav_gives_the_same_report() {
        let mut samples = vec![0_i16; 16_000];
        samples.extend((0..16_000).map(|n| ((n * 37 % 8_000) - 4_000) as i16));
        samples.extend(vec![0; 32_000]);
        let said = [Utterance { start_ms: 1_000, end_ms: 2_000, text: "book a table".into() }];
        let replay = || {
            run("x", &samples, Settings::default(), VadConfig::default(), &said, |_, _| {})
                .map(|done| (done.report, done.reply.len()))
        };
        let (first, again) = (replay().unwrap(), replay().unwrap());
        assert_eq!(first, again);
        let texts: Vec<_> = first.0.transcripts.iter().map(|at| at.what.text.as_str()).collect();
        assert!(texts.contains(&"book a table"), "{texts:?}");
        assert!(!first.0.turns.is_empty());
    }
}
