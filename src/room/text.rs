//! Transcripts in the room (text streams on `lk.transcription`) and typed text (`lk.chat`).

use std::{collections::HashMap, time::Duration};

use futures_util::StreamExt;
use livekit::{
    SendTextOptions, StreamTextOptions, StreamWriter, TextStreamReader, TextStreamWriter,
    prelude::{LocalParticipant, ParticipantIdentity},
};
use tracing::debug;

use crate::transcript::segment::{Segment, SpeakerKind};

const TRANSCRIPTION: &str = "lk.transcription";
/// The topic of typed text.
pub const CHAT: &str = "lk.chat";
const SEGMENT_ID: &str = "lk.segment_id";
const TRACK_ID: &str = "lk.transcribed_track_id";
const FINAL: &str = "lk.transcription_final";
/// The longest typed message that is taken, in bytes.
const MAX_CHAT: usize = 16 * 1_024;

/// Shows transcripts in a room. The user's interims replace each other, one stream each, in the
/// user's name; the agent's text grows in one stream per segment as its audio plays.
#[derive(Debug)]
pub struct Transcriptions {
    participant: LocalParticipant,
    growing: Option<Growing>,
}

struct Growing {
    segment: String,
    written: String,
    writer: TextStreamWriter,
}

impl std::fmt::Debug for Growing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Growing").field("segment", &self.segment).finish_non_exhaustive()
    }
}

impl Transcriptions {
    pub fn new(participant: LocalParticipant) -> Self {
        Self { participant, growing: None }
    }

    /// Shows one segment; `track` is the sid of the track that was transcribed. A room that takes
    /// no text is logged, not an error: the transcript itself is kept elsewhere.
    pub async fn show(&mut self, segment: &Segment, track: Option<String>) {
        let shown = match segment.kind {
            SpeakerKind::User => self.replace(segment, track).await,
            SpeakerKind::Agent => self.grow(segment, track).await,
        };
        if let Err(error) = shown {
            debug!(error, "a transcript could not be shown in the room");
        }
    }

    async fn replace(&self, segment: &Segment, track: Option<String>) -> Result<(), String> {
        let mut options = SendTextOptions::new_with_topic(TRANSCRIPTION)
            .with_attributes(attributes(segment, track, segment.is_final));
        if segment.kind == SpeakerKind::User {
            options = options.with_sender_identity(ParticipantIdentity(segment.speaker_id.clone()));
        }
        self.participant.send_text(&segment.text, options).await.map_err(|e| e.to_string())?;
        Ok(())
    }

    async fn grow(&mut self, segment: &Segment, track: Option<String>) -> Result<(), String> {
        let continues = self.growing.as_ref().is_some_and(|growing| {
            growing.segment == segment.id && segment.text.starts_with(&growing.written)
        });
        if !continues {
            if let Some(stale) = self.growing.take() {
                stale.writer.close().await.map_err(|e| e.to_string())?;
            }
            if segment.is_final {
                return self.replace(segment, track).await;
            }
            let options = StreamTextOptions::new_with_topic(TRANSCRIPTION)
                .with_attributes(attributes(segment, track, false));
            let writer = self.participant.stream_text(options).await.map_err(|e| e.to_string())?;
            self.growing =
                Some(Growing { segment: segment.id.clone(), written: String::new(), writer });
        }
        let Some(growing) = &mut self.growing else { return Ok(()) };
        let fresh = &segment.text[growing.written.len()..];
        if !fresh.is_empty() {
            growing.writer.write(fresh).await.map_err(|e| e.to_string())?;
            growing.written.push_str(fresh);
        }
        if segment.is_final
            && let Some(growing) = self.growing.take()
        {
            let last = HashMap::from([(FINAL.to_owned(), "true".to_owned())]);
            growing.writer.close_with_options(None, Some(last)).await.map_err(|e| e.to_string())?;
        }
        Ok(())
    }
}

fn attributes(segment: &Segment, track: Option<String>, is_final: bool) -> HashMap<String, String> {
    let mut attributes = HashMap::from([
        (SEGMENT_ID.to_owned(), segment.id.clone()),
        (FINAL.to_owned(), is_final.to_string()),
    ]);
    attributes.extend(track.map(|sid| (TRACK_ID.to_owned(), sid)));
    attributes
}

/// Reads one typed message, bounded in size and time; `None` when it is neither.
pub async fn read_chat(mut reader: TextStreamReader) -> Option<String> {
    let read = async {
        let mut text = String::new();
        while let Some(chunk) = reader.next().await {
            text.push_str(&chunk.ok()?);
            if text.len() > MAX_CHAT {
                debug!("a typed message was too long");
                return None;
            }
        }
        Some(text)
    };
    let text = tokio::time::timeout(Duration::from_secs(10), read).await.ok().flatten()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}
