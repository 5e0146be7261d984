//! What can be asked of a simulated call: what its machine did, and what the user heard.

use std::{sync::Arc, time::Duration};

use super::Call;
use crate::{
    llm::Message,
    session::{
        command::{Command, Metric},
        history::join,
        machine::Session,
        state::AgentState,
    },
    transcript::segment::{Segment, SpeakerKind},
};

impl Call {
    /// Every command so far, with its time since the call began.
    pub fn log(&self) -> &[(Duration, Command)] {
        &self.log
    }

    pub fn now(&self) -> Duration {
        self.now
    }

    pub fn state(&self) -> AgentState {
        self.session.state()
    }

    pub fn session(&self) -> &Session {
        &self.session
    }

    /// How far the speech that is sounding now has come, in ms; none while the agent is silent.
    pub fn sounding(&self) -> Option<u64> {
        let (_, track) = self.tracks.iter().next_back()?;
        let passed = self.now.saturating_sub(track.since).as_millis() as u64;
        let position = track.position + passed;
        let sounds = track.playing && track.started && !track.gone && position < track.audio_ms;
        sounds.then_some(position)
    }

    /// When turns were committed: when their generations were asked for.
    pub fn turns_committed_at(&self) -> Vec<Duration> {
        self.times(|command| matches!(command, Command::Generate { .. }))
    }

    /// When the last turn was committed.
    pub fn turn_committed_at(&self) -> Option<Duration> {
        self.turns_committed_at().last().copied()
    }

    /// When the commands that `is` picks were given.
    pub fn times(&self, is: impl Fn(&Command) -> bool) -> Vec<Duration> {
        self.log.iter().filter(|(_, command)| is(command)).map(|(at, _)| *at).collect()
    }

    /// The states gone through, with their times.
    pub fn states(&self) -> Vec<(Duration, AgentState)> {
        let states = self.log.iter().filter_map(|(at, command)| match command {
            Command::SetState(state) => Some((*at, *state)),
            _ => None,
        });
        states.collect()
    }

    pub fn metrics(&self) -> Vec<Metric> {
        let metrics = self.log.iter().filter_map(|(_, command)| match command {
            Command::Metric(metric) => Some(*metric),
            _ => None,
        });
        metrics.collect()
    }

    /// The transcript's rows: final segments in order.
    pub fn rows(&self) -> Vec<&Segment> {
        let rows = self.log.iter().filter_map(|(_, command)| match command {
            Command::Transcript(segment) if segment.is_final => Some(segment),
            _ => None,
        });
        rows.collect()
    }

    pub fn user_said(&self) -> Vec<String> {
        self.texts(SpeakerKind::User)
    }

    /// What the agent said by its own transcript.
    pub fn agent_said(&self) -> Vec<String> {
        self.texts(SpeakerKind::Agent)
    }

    /// What the user really heard: the words that were played to their end.
    pub fn heard(&self) -> String {
        let mut heard = String::new();
        for track in self.tracks.values() {
            let words = track.words.iter().filter(|word| word.end_ms <= track.position);
            let words: String = words.map(|word| word.text.as_str()).collect();
            join(&mut heard, &words);
        }
        heard
    }

    /// When each speech became audible for the first time.
    pub fn audible_at(&self) -> &[Duration] {
        &self.audible_at
    }

    /// The conversation as the model is shown it.
    pub fn history(&mut self) -> Arc<[Message]> {
        self.session.history()
    }

    fn texts(&self, kind: SpeakerKind) -> Vec<String> {
        self.rows().iter().filter(|row| row.kind == kind).map(|row| row.text.clone()).collect()
    }
}
