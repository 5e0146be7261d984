//! One dialogue, 10 ms at a time: the microphone (clips, background, the agent's echo) through the
//! real detector into the machine, in virtual time, beside scripted providers.
//!
//! When a clip is heard depends on what the agent does: a turn waits until the agent has finished,
//! an interruption until it speaks.

use std::{ops::Range, time::Duration};

use crate::{
    audio::{
        smart_turn::SmartTurn,
        vad::{VadConfig, VadError, VoiceDetector},
    },
    eval::dialogue::{After, Clip, Dialogue, Stretch},
    session::{
        command::Command,
        input::{Input, VadEvent},
        settings::Settings,
        simulation::{CALLER, Call, Spoken, ms},
        state::AgentState,
    },
};

/// Samples of 10 ms at 16 kHz.
const FRAME: usize = 160;
const FRAME_MS: u64 = 10;
/// How long the turn model takes to answer.
const MODEL_MS: u64 = 120;
/// A caller who gets no answer, or hears no voice, goes on after this long.
const TIRED_MS: u64 = 9_000;
/// Quiet after which nothing more is expected at the end.
const SETTLE_MS: u64 = 4_000;
/// However the agent behaves, a dialogue ends.
const LONGEST_MS: u64 = 15 * 60 * 1_000;

/// What happened in a dialogue; times in ms since its start.
#[derive(Debug, Default)]
pub struct Lived {
    /// When each clip began, in the order of the labels; none if it never did.
    pub clips: Vec<Option<u64>>,
    /// When the agent's voice sounded.
    pub agent: Vec<Range<u64>>,
    /// When the detector heard speech, by its true times.
    pub vad: Vec<Range<u64>>,
    pub log: Vec<(u64, Command)>,
    pub duration_ms: u64,
}

/// # Errors
/// What is wrong with the detector's configuration.
pub fn run(
    dialogue: &Dialogue,
    agent_voice: &[i16],
    settings: Settings,
    vad: VadConfig,
    model: Option<&SmartTurn>,
) -> Result<Lived, VadError> {
    let label = &dialogue.label;
    let mut detector = VoiceDetector::new(vad)?;
    let mut call = Call::new(Settings { greeting: None, ..settings });
    call.script.stt_interim_delay = Some(ms(label.stt.interim_ms));
    call.script.stt_finalize_delay = ms(label.stt.finalize_ms);
    call.script.stt_word_times = true;
    let mut stage = Stage { dialogue, agent_voice, heard: Vec::new(), ..Stage::new(dialogue) };
    let mut now_ms = 0;
    let mut frame = [0_i16; FRAME];
    let mut past = Vec::new();
    // How much of what the machine did has been seen.
    let mut looked = 0;
    while now_ms < LONGEST_MS && !stage.is_over(now_ms) {
        call.run_until(ms(now_ms));
        stage.look(&call, now_ms);
        stage.begin_clip(&mut call, now_ms);
        stage.frame(now_ms, &mut frame);
        now_ms += FRAME_MS;
        let lived = &mut stage.lived;
        detector.push(&frame, |event, _| {
            note_vad(lived, event, now_ms);
            call.input_at(ms(now_ms), Input::Vad { speaker: CALLER, event });
        });
        if let Some(model) = model {
            past.extend_from_slice(&frame);
            let asks =
                |(_, command): &(_, Command)| matches!(command, Command::AskTurnModel { .. });
            if call.log()[looked..].iter().any(asks)
                && let Ok(probability) = model.ended(&past)
            {
                let answer = Input::TurnEnd { speaker: CALLER, probability };
                call.input_at(ms(now_ms + MODEL_MS), answer);
            }
            looked = call.log().len();
        }
    }
    let mut lived = stage.lived;
    if let Some(open) = lived.agent.last_mut().filter(|open| open.end == u64::MAX) {
        open.end = now_ms;
    }
    if let Some(open) = lived.vad.last_mut().filter(|open| open.end == u64::MAX) {
        open.end = now_ms;
    }
    lived.duration_ms = now_ms;
    lived.log =
        call.log().iter().map(|(at, command)| (at.as_millis() as u64, command.clone())).collect();
    Ok(lived)
}

fn note_vad(lived: &mut Lived, event: VadEvent, now_ms: u64) {
    match event {
        VadEvent::Faint => {}
        VadEvent::Started { speech_ms } => {
            lived.vad.push(now_ms.saturating_sub(speech_ms.into())..u64::MAX);
        }
        VadEvent::Ended { silence_ms } => {
            if let Some(open) = lived.vad.last_mut() {
                open.end = now_ms.saturating_sub(silence_ms.into()).max(open.start);
            }
        }
    }
}

/// The caller, and what the caller hears.
#[derive(Debug)]
struct Stage<'a> {
    dialogue: &'a Dialogue,
    agent_voice: &'a [i16],
    lived: Lived,
    /// How many clips have begun.
    begun: usize,
    /// The end of the last clip.
    said_until: u64,
    /// When the agent's voice began first after the last turn.
    voice_since: Option<u64>,
    quiet_since: Option<u64>,
    /// The agent's voice, to come back as echo: the position in it at each frame.
    heard: Vec<Option<u64>>,
}

impl<'a> Stage<'a> {
    fn new(dialogue: &'a Dialogue) -> Self {
        Self {
            dialogue,
            agent_voice: &[],
            lived: Lived { clips: vec![None; dialogue.label.clips.len()], ..Lived::default() },
            begun: 0,
            said_until: 0,
            voice_since: None,
            quiet_since: None,
            heard: Vec::new(),
        }
    }

    fn next(&self) -> Option<&'a Clip> {
        self.dialogue.label.clips.get(self.begun)
    }

    fn is_over(&self, now_ms: u64) -> bool {
        let quiet =
            self.quiet_since.is_some_and(|since| since.max(self.said_until) + SETTLE_MS <= now_ms);
        self.next().is_none() && quiet
    }

    /// What the agent does.
    fn look(&mut self, call: &Call, now_ms: u64) {
        let sounding = call.sounding();
        self.heard.push(sounding);
        let open = self.lived.agent.last_mut().filter(|open| open.end == u64::MAX);
        match (sounding, open) {
            (Some(_), None) => {
                self.lived.agent.push(now_ms..u64::MAX);
                self.voice_since.get_or_insert(now_ms);
            }
            (None, Some(open)) => open.end = now_ms,
            _ => {}
        }
        if sounding.is_some() || call.state() != AgentState::Idle {
            self.quiet_since = None;
        } else {
            self.quiet_since.get_or_insert(now_ms);
        }
    }

    fn begin_clip(&mut self, call: &mut Call, now_ms: u64) {
        let Some(clip) = self.next() else { return };
        if now_ms < self.said_until {
            return;
        }
        let tired = self.said_until + clip.after_ms + TIRED_MS <= now_ms;
        let since = match clip.after {
            // Whether an answer comes at all is not known right after a turn.
            After::Quiet if self.voice_since.is_none() && self.begun > 0 => None,
            After::Quiet => self.quiet_since.map(|since| since.max(self.said_until)),
            After::Voice => self.voice_since,
            After::Clip => Some(self.said_until),
        };
        if !tired && since.is_none_or(|since| since + clip.after_ms > now_ms) {
            return;
        }
        if let Some(answer) = &clip.answer {
            call.answers_with(answer);
        }
        let at = |word_ms: u64| ms(now_ms + word_ms);
        let words: Vec<Vec<Spoken>> = clip
            .segments
            .iter()
            .map(|words| {
                let spoken = |w: &crate::eval::dialogue::Word| {
                    (w.text.clone(), at(w.start_ms)..at(w.end_ms))
                };
                words.iter().map(spoken).collect()
            })
            .collect();
        let endpointing = Duration::from_millis(self.dialogue.label.stt.endpointing_ms);
        call.user_utters(&words, endpointing);
        if clip.is_turn() {
            self.voice_since = None;
        }
        if let Some(begun) = self.lived.clips.get_mut(self.begun) {
            *begun = Some(now_ms);
        }
        self.said_until = now_ms + clip.length_ms();
        self.begun += 1;
    }

    /// What the microphone hears.
    fn frame(&self, now_ms: u64, frame: &mut [i16; FRAME]) {
        let mut mixed = [0.0_f32; FRAME];
        let label = &self.dialogue.label;
        if let Some((clip, Some(begun))) = self
            .begun
            .checked_sub(1)
            .and_then(|last| Some((label.clips.get(last)?, *self.lived.clips.get(last)?)))
        {
            let into_ms = now_ms - begun;
            if into_ms < clip.length_ms() {
                let until = clip.to_ms.min(clip.from_ms + into_ms + FRAME_MS);
                self.add(&mut mixed, clip.from_ms + into_ms..until);
            }
        }
        if let Some(Stretch { from_ms, to_ms }) = label.bed {
            let at = from_ms + now_ms % (to_ms - from_ms);
            self.add(&mut mixed, at..(at + FRAME_MS).min(to_ms));
        }
        if let Some(echo) = label.echo
            && let Some(Some(position)) = now_ms
                .checked_sub(echo.delay_ms)
                .and_then(|at| self.heard.get(usize::try_from(at / FRAME_MS).ok()?))
        {
            let gain = 10.0_f32.powf(echo.gain_db / 20.0);
            let from = usize::try_from(*position).unwrap_or(0) * 16;
            let voice = self.agent_voice.iter().cycle().skip(from % self.agent_voice.len().max(1));
            for (sample, echoed) in mixed.iter_mut().zip(voice) {
                *sample += f32::from(*echoed) * gain;
            }
        }
        for (out, sample) in frame.iter_mut().zip(mixed) {
            *out = sample.clamp(f32::from(i16::MIN), f32::from(i16::MAX)) as i16;
        }
    }

    fn add(&self, mixed: &mut [f32; FRAME], range_ms: Range<u64>) {
        let at = |ms: u64| usize::try_from(ms).unwrap_or(0) * 16;
        let samples = &self.dialogue.samples;
        let range = at(range_ms.start).min(samples.len())..at(range_ms.end).min(samples.len());
        for (sample, more) in mixed.iter_mut().zip(&samples[range]) {
            *sample += f32::from(*more);
        }
    }
}
