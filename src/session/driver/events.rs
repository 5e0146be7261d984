//! What happens in the room and at the providers, told to the machine; the speakers that come and go.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tracing::warn;

use super::{Driver, Leaving, QUEUE, Speaker, Stream, Told, commands::send};
use crate::{
    room::{input::hear, output::PlayoutCommand},
    session::{
        input::{Input, ParticipantEvent, SpeakerId, SttInput, TtsInput},
        ports::{Microphone, RoomEvent},
    },
    stt::{SttControl, SttEvent, SttStream},
    tts::{SpeechId, TtsEvent},
};

/// How long who has left is there still: a reconnection is told of right after that all have left.
const UNTIL_TOLD: Duration = Duration::from_millis(200);
/// How long after a reconnection who was there before it may come back.
const BACK_WITHIN: Duration = Duration::from_secs(5);

impl Driver {
    pub(super) fn on_room(&mut self, event: RoomEvent, now: Instant) {
        match event {
            RoomEvent::Ready => self.session.handle_input(Input::Ready, now),
            RoomEvent::ParticipantJoined { identity, name } => {
                let speaker = self.speaker(&identity);
                if let Some(known) = self.speakers.get_mut(&speaker) {
                    known.leaving = None;
                    known.name.clone_from(&name);
                }
                let event = ParticipantEvent::Joined { identity, name };
                self.session.handle_input(Input::Participant { speaker, event }, now);
            }
            RoomEvent::ParticipantLeft { identity } => {
                let speaker = self.speaker(&identity);
                self.deafen(speaker);
                if let Some(known) = self.speakers.get_mut(&speaker) {
                    known.leaving = Some(if self.reconnecting {
                        Leaving::Reconnection
                    } else {
                        Leaving::Return(now + UNTIL_TOLD)
                    });
                }
            }
            RoomEvent::Audible { identity, track, microphone } => {
                self.listen(&identity, track, microphone);
            }
            RoomEvent::Inaudible { identity, track } => {
                let speaker = self.speaker(&identity);
                if self.speakers.get(&speaker).is_some_and(|known| known.track == track) {
                    self.deafen(speaker);
                }
            }
            RoomEvent::Reconnecting => {
                self.reconnecting = true;
                for leaving in self.speakers.values_mut().filter_map(|s| s.leaving.as_mut()) {
                    *leaving = Leaving::Reconnection;
                }
            }
            RoomEvent::Reconnected => {
                self.reconnecting = false;
                for leaving in self.speakers.values_mut().filter_map(|s| s.leaving.as_mut()) {
                    *leaving = Leaving::Return(now + BACK_WITHIN);
                }
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

    pub(super) fn on_stt(&mut self, (speaker, serial, event): Told, now: Instant) {
        let known = self.speakers.get_mut(&speaker);
        let current =
            known.filter(|known| known.stream.as_ref().is_some_and(|s| s.serial == serial));
        let Some(event) = event else {
            if let Some(known) = current {
                known.stream = None;
            }
            self.open_streams -= 1;
            self.tell_if_all_is_told(now);
            return;
        };
        // Of a stream whose place another took, or whose speaker has gone, words still count, and how
        // it fares does not.
        if current.is_none() && !matches!(event, SttEvent::Final(_) | SttEvent::Usage { .. }) {
            return;
        }
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
            track: String::new(),
            hearing: None,
            leaving: None,
        };
        self.speakers.insert(id, speaker);
        id
    }

    /// Opens recognition for a speaker and lets the microphone flow into it.
    fn listen(&mut self, identity: &str, track: String, microphone: Box<dyn Microphone>) {
        if self.closing {
            return;
        }
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
        self.last_stream += 1;
        self.open_streams += 1;
        let serial = self.last_stream;
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                if forward.send((id, serial, Some(event))).await.is_err() {
                    return;
                }
            }
            let _ = forward.send((id, serial, None)).await;
        });
        if let Some(speaker) = self.speakers.get_mut(&id) {
            speaker.stream = Some(Stream { serial, control });
            speaker.track = track;
            speaker.hearing = Some(hearing);
        }
    }

    /// The call is over: hears nobody any more, and waits for what recognition still has.
    pub(super) fn close_stt(&mut self, now: Instant) {
        self.closing = true;
        let speakers: Vec<_> = self.speakers.keys().copied().collect();
        for speaker in speakers {
            self.deafen(speaker);
        }
        self.tell_if_all_is_told(now);
    }

    fn tell_if_all_is_told(&mut self, now: Instant) {
        if self.closing && self.open_streams == 0 {
            self.session.handle_input(Input::SttOver, now);
        }
    }

    /// The microphone is gone: recognition is asked for what it still has.
    fn deafen(&mut self, id: SpeakerId) {
        if let Some(speaker) = self.speakers.get_mut(&id) {
            speaker.hearing = None;
            if let Some(stream) = &speaker.stream {
                let _ = stream.control.try_send(SttControl::Close);
            }
        }
    }

    pub(super) fn depart(&mut self, speaker: SpeakerId, now: Instant) {
        self.speakers.remove(&speaker);
        let event = ParticipantEvent::Left;
        self.session.handle_input(Input::Participant { speaker, event }, now);
    }
}
