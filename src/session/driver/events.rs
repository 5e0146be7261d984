//! What happens in the room and at the providers, told to the machine; the speakers that come and go.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tracing::warn;

use super::{Driver, QUEUE, Speaker, commands::send};
use crate::{
    room::{input::hear, output::PlayoutCommand},
    session::{
        input::{Input, ParticipantEvent, SpeakerId, SttInput, TtsInput},
        ports::{Microphone, RoomEvent},
    },
    stt::{SttControl, SttEvent, SttStream},
    tts::{SpeechId, TtsEvent},
};

/// How long the last words of a speaker who has gone are waited for.
const LAST_WORDS: Duration = Duration::from_millis(1_500);

impl Driver {
    pub(super) fn on_room(&mut self, event: RoomEvent, now: Instant) {
        match event {
            RoomEvent::Ready => self.session.handle_input(Input::Ready, now),
            RoomEvent::ParticipantJoined { identity, name } => {
                let speaker = self.speaker(&identity);
                if let Some(known) = self.speakers.get_mut(&speaker) {
                    known.leaving_by = None;
                    known.name.clone_from(&name);
                }
                let event = ParticipantEvent::Joined { identity, name };
                self.session.handle_input(Input::Participant { speaker, event }, now);
            }
            RoomEvent::ParticipantLeft { identity } => {
                let speaker = self.speaker(&identity);
                self.deafen(speaker);
                match self.speakers.get_mut(&speaker) {
                    Some(known) if known.stream.is_some() => {
                        known.leaving_by = Some(now + LAST_WORDS);
                    }
                    _ => self.depart(speaker, now),
                }
            }
            RoomEvent::Audible { identity, microphone } => self.listen(&identity, microphone),
            RoomEvent::Inaudible { identity } => {
                let speaker = self.speaker(&identity);
                self.deafen(speaker);
            }
            RoomEvent::Chat { identity, text } => {
                let speaker = self.speaker(&identity);
                self.session.handle_input(Input::Chat { speaker, text }, now);
            }
            RoomEvent::Say { text, interruptible } => {
                self.session.handle_input(Input::Say { text, interruptible }, now);
            }
            RoomEvent::HandOver { to, keeps_history } => self.hand_over(&to, keeps_history, now),
            RoomEvent::Drain => self.session.handle_input(Input::Drain, now),
            RoomEvent::Closed { reason } => {
                self.session.handle_input(Input::Close { reason }, now);
            }
        }
    }

    pub(super) fn on_stt(&mut self, speaker: SpeakerId, event: Option<SttEvent>, now: Instant) {
        let Some(event) = event else {
            let left = self.speakers.get_mut(&speaker).is_some_and(|known| {
                known.stream = None;
                known.leaving_by.is_some()
            });
            if left {
                self.depart(speaker, now);
            }
            return;
        };
        let event = match event {
            SttEvent::Connected => SttInput::Restored,
            SttEvent::SpeechStarted => SttInput::SpeechStarted,
            SttEvent::Interim(transcript) => SttInput::Interim(transcript),
            SttEvent::Final(transcript) => SttInput::Final(transcript),
            SttEvent::EndOfTurn => SttInput::EndOfTurn,
            SttEvent::Usage { link, audio_ms } => SttInput::Usage { link, audio_ms },
            SttEvent::Lost { reason, retry_in } => {
                warn!(reason, retry_in_ms = retry_in.as_millis() as u64, "speech recognition lost");
                SttInput::Lost
            }
            SttEvent::Failed(error) => {
                warn!(%error, "speech recognition failed");
                SttInput::Failed(error)
            }
        };
        self.session.handle_input(Input::Stt { speaker, event }, now);
    }

    pub(super) fn on_tts(&mut self, event: Option<TtsEvent>, now: Instant) {
        let Some(speaking) = &mut self.speaking else { return };
        let Some(event) = event else {
            // The connection's task is gone: the machine hears of it at the next thing it says.
            warn!("speech synthesis has stopped");
            speaking.tts_events = None;
            return;
        };
        let (id, event) = match event {
            TtsEvent::Audio { id, samples } => {
                let ms = (samples.len() as u64 * 1_000 / u64::from(speaking.tts_rate)) as u32;
                send(&speaking.playout, PlayoutCommand::Push { id, samples });
                (id, TtsInput::Audio { ms })
            }
            TtsEvent::Alignment { id, words } => (id, TtsInput::Alignment(words)),
            TtsEvent::End { id } => {
                send(&speaking.playout, PlayoutCommand::Finish { id });
                (id, TtsInput::End)
            }
            TtsEvent::Error { id, error } => {
                warn!(%error, "speech synthesis failed");
                send(&speaking.playout, PlayoutCommand::Finish { id });
                (id, TtsInput::Error(error))
            }
            TtsEvent::Usage { link, characters } => {
                (SpeechId(0), TtsInput::Usage { link, characters })
            }
        };
        self.session.handle_input(Input::Tts { id, event }, now);
    }

    fn speaker(&mut self, identity: &str) -> SpeakerId {
        let known = self.speakers.iter().find(|(_, speaker)| speaker.identity == identity);
        if let Some((id, _)) = known {
            return *id;
        }
        let id = SpeakerId(self.next_speaker);
        self.next_speaker += 1;
        let speaker = Speaker {
            identity: identity.to_owned(),
            name: identity.to_owned(),
            stream: None,
            hearing: None,
            leaving_by: None,
        };
        self.speakers.insert(id, speaker);
        id
    }

    /// Opens recognition for a speaker and lets the microphone flow into it.
    fn listen(&mut self, identity: &str, microphone: Box<dyn Microphone>) {
        let id = self.speaker(identity);
        self.deafen(id);
        let model = self.turn_model.clone();
        let (agent_turn, heard) = (self.agent_turn.clone(), self.heard_sender.clone());
        let (hearing, audio) = match hear(id, microphone, self.vad, model, agent_turn, heard) {
            Ok(both) => both,
            Err(error) => {
                warn!(%error, "voice activity detection cannot start");
                return;
            }
        };
        let (events_sender, mut events) = mpsc::channel(QUEUE);
        let name = self.speakers.get(&id).map_or(identity, |speaker| &speaker.name);
        let keeper = self.keeper.clone().map(|keeper| keeper.of(identity, name));
        let SttStream { control, task: _ } = self.stt.open_kept(audio, events_sender, keeper);
        let forward = self.stt_sender.clone();
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                if forward.send((id, Some(event))).await.is_err() {
                    return;
                }
            }
            let _ = forward.send((id, None)).await;
        });
        if let Some(speaker) = self.speakers.get_mut(&id) {
            speaker.stream = Some(control);
            speaker.hearing = Some(hearing);
        }
    }

    /// The microphone is gone: recognition is asked for what it still has.
    fn deafen(&mut self, id: SpeakerId) {
        if let Some(speaker) = self.speakers.get_mut(&id) {
            speaker.hearing = None;
            if let Some(stream) = &speaker.stream {
                let _ = stream.try_send(SttControl::Close);
            }
        }
    }

    pub(super) fn depart(&mut self, speaker: SpeakerId, now: Instant) {
        self.speakers.remove(&speaker);
        let event = ParticipantEvent::Left;
        self.session.handle_input(Input::Participant { speaker, event }, now);
    }
}
