//! A person in a room: speaks WAVs, hears the agent, reads the transcripts.

use std::{
    collections::HashMap,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use livekit::{
    SendTextOptions, StreamReader,
    options::TrackPublishOptions,
    prelude::{
        LocalAudioTrack, LocalTrack, Participant, RemoteTrack, Room, RoomEvent, RoomOptions,
        TrackSource,
    },
    webrtc::{
        audio_frame::AudioFrame,
        audio_source::{AudioSourceOptions, RtcAudioSource, native::NativeAudioSource},
        audio_stream::native::NativeAudioStream,
    },
};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

use super::within;

const RATE: u32 = 16_000;
/// Louder than this is the agent's voice.
const AUDIBLE: f32 = -45.0;
/// Silence of this length ends a stretch of the agent's voice.
const HANG: Duration = Duration::from_millis(700);

/// A transcript as the room shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// Whose words: the sender of the stream.
    pub who: String,
    pub segment: String,
    pub words: String,
    pub is_final: bool,
}

/// One stretch of the agent's voice.
#[derive(Debug, Clone, Copy)]
pub struct Stretch {
    pub from: Instant,
    pub to: Instant,
}

#[derive(Debug, Default)]
struct Seen {
    texts: Vec<Text>,
    states: Vec<String>,
    voice: Vec<Stretch>,
    agent: Option<String>,
    agent_left: bool,
}

pub struct Caller {
    pub room: Arc<Room>,
    speech: mpsc::Sender<Vec<i16>>,
    seen: Arc<Mutex<Seen>>,
    changed: Arc<Notify>,
}

impl Caller {
    /// Joins, and publishes a microphone that is silent so far.
    pub async fn join(url: &str, token: &str) -> Self {
        let (room, events) =
            within("the caller joining", Room::connect(url, token, RoomOptions::default()))
                .await
                .expect("the caller joins");
        let room = Arc::new(room);
        let source = NativeAudioSource::new(AudioSourceOptions::default(), RATE, 1, 100);
        let track =
            LocalAudioTrack::create_audio_track("mic", RtcAudioSource::Native(source.clone()));
        let options = TrackPublishOptions { source: TrackSource::Microphone, ..Default::default() };
        room.local_participant()
            .publish_track(LocalTrack::Audio(track), options)
            .await
            .expect("the caller's microphone");
        let (speech, queue) = mpsc::channel(64);
        tokio::spawn(talk(source, queue));
        let (seen, changed) = (Arc::new(Mutex::new(Seen::default())), Arc::new(Notify::new()));
        tokio::spawn(watch(events, seen.clone(), changed.clone()));
        Self { room, speech, seen, changed }
    }

    pub fn identity(&self) -> String {
        self.room.local_participant().identity().to_string()
    }

    /// Speaks samples (mono, 16 kHz); returns once they are all on their way.
    pub async fn say(&self, samples: &[i16]) {
        let length = Duration::from_millis(samples.len() as u64 / 16);
        self.speech.send(samples.to_vec()).await.expect("the caller's microphone");
        tokio::time::sleep(length).await;
    }

    pub async fn chat(&self, text: &str) {
        let options = SendTextOptions::new_with_topic("lk.chat");
        self.room.local_participant().send_text(text, options).await.expect("a typed message");
    }

    /// Waits until what has been seen so far gives an answer.
    async fn until<T>(&self, what: &str, mut find: impl FnMut(&Seen) -> Option<T>) -> T {
        let looked = within(what, async {
            loop {
                let changed = self.changed.notified();
                if let Some(found) = find(&self.seen.lock()) {
                    return found;
                }
                // The voice's end is a matter of time, not of an event.
                let _ = tokio::time::timeout(Duration::from_millis(50), changed).await;
            }
        });
        looked.await
    }

    pub async fn final_text(&self, what: &str, matches: impl Fn(&Text) -> bool) -> Text {
        self.until(what, |seen| {
            seen.texts.iter().find(|text| text.is_final && matches(text)).cloned()
        })
        .await
    }

    pub fn texts(&self) -> Vec<Text> {
        self.seen.lock().texts.clone()
    }

    pub fn states(&self) -> Vec<String> {
        self.seen.lock().states.clone()
    }

    /// The agent's nth stretch of voice (from 0), as soon as it begins.
    pub async fn hears(&self, nth: usize) -> Stretch {
        self.until(&format!("stretch {nth} of the agent's voice"), |seen| {
            seen.voice.get(nth).copied()
        })
        .await
    }

    /// The same, once it is over.
    pub async fn heard(&self, nth: usize) -> Stretch {
        self.until(&format!("the end of stretch {nth} of the agent's voice"), |seen| {
            seen.voice
                .get(nth)
                .copied()
                .filter(|stretch| stretch.to.elapsed() > HANG || seen.voice.len() > nth + 1)
        })
        .await
    }

    /// Waits until so much of the agent's nth stretch of voice has been heard.
    pub async fn has_heard(&self, nth: usize, length: Duration) {
        self.until(&format!("{length:?} of stretch {nth} of the agent's voice"), |seen| {
            let stretch = seen.voice.get(nth)?;
            (stretch.to.duration_since(stretch.from) >= length).then_some(())
        })
        .await;
    }

    pub async fn agent_joined(&self) -> String {
        self.until("the agent joining", |seen| seen.agent.clone()).await
    }

    pub async fn agent_left(&self) {
        self.until("the agent leaving", |seen| seen.agent_left.then_some(())).await;
    }

    pub async fn leave(self) {
        let _ = self.room.close().await;
    }
}

/// Keeps the microphone on: speech when there is some, faint silence otherwise.
async fn talk(source: NativeAudioSource, mut queue: mpsc::Receiver<Vec<i16>>) {
    let mut pending = std::collections::VecDeque::new();
    loop {
        while let Ok(samples) = queue.try_recv() {
            pending.extend(samples);
        }
        let frame: Vec<i16> = (0..160).map(|_| pending.pop_front().unwrap_or(0)).collect();
        let frame = AudioFrame {
            data: frame.into(),
            sample_rate: RATE,
            num_channels: 1,
            samples_per_channel: 160,
        };
        if queue.is_closed() || source.capture_frame(&frame).await.is_err() {
            return;
        }
    }
}

async fn watch(
    mut events: mpsc::UnboundedReceiver<RoomEvent>,
    seen: Arc<Mutex<Seen>>,
    changed: Arc<Notify>,
) {
    let is_agent = |identity: &str| identity.starts_with("agent");
    while let Some(event) = events.recv().await {
        match event {
            RoomEvent::Connected { participants_with_tracks } => {
                for (participant, _) in participants_with_tracks {
                    note_agent(&seen, &participant.identity().0, &participant.attributes());
                }
            }
            RoomEvent::ParticipantConnected(participant) => {
                note_agent(&seen, &participant.identity().0, &participant.attributes());
            }
            RoomEvent::Disconnected { .. } => seen.lock().agent_left = true,
            RoomEvent::ParticipantDisconnected(participant)
                if is_agent(&participant.identity().0) =>
            {
                seen.lock().agent_left = true;
            }
            RoomEvent::ParticipantAttributesChanged {
                participant: Participant::Remote(participant),
                changed_attributes,
            } => {
                note_agent(&seen, &participant.identity().0, &changed_attributes);
            }
            RoomEvent::TrackSubscribed { track: RemoteTrack::Audio(track), .. } => {
                let stream = NativeAudioStream::new(track.rtc_track(), RATE as i32, 1);
                tokio::spawn(listen(stream, seen.clone(), changed.clone()));
            }
            RoomEvent::TextStreamOpened { reader, topic, participant_identity }
                if topic == "lk.transcription" =>
            {
                let Some(reader) = reader.take() else { continue };
                let (seen, changed) = (seen.clone(), changed.clone());
                tokio::spawn(async move {
                    let attributes = reader.info().attributes().clone();
                    let of = |name: &str| attributes.get(name).cloned().unwrap_or_default();
                    let (segment, open) = (of("lk.segment_id"), of("lk.transcription_final"));
                    let Ok(words) = reader.read_all().await else { return };
                    // The agent's stream opens as an interim and closes as the final.
                    let who = participant_identity.0;
                    let is_final = open == "true" || is_agent(&who);
                    seen.lock().texts.push(Text { who, segment, words, is_final });
                    changed.notify_waiters();
                });
            }
            _ => {}
        }
        changed.notify_waiters();
    }
}

fn note_agent(seen: &Mutex<Seen>, identity: &str, attributes: &HashMap<String, String>) {
    if !identity.starts_with("agent") {
        return;
    }
    let mut seen = seen.lock();
    seen.agent = Some(identity.to_owned());
    if let Some(state) = attributes.get("lk.agent.state")
        && seen.states.last() != Some(state)
    {
        seen.states.push(state.clone());
    }
}

async fn listen(mut stream: NativeAudioStream, seen: Arc<Mutex<Seen>>, changed: Arc<Notify>) {
    while let Some(frame) = stream.next().await {
        if antiphon::audio::level::dbfs(&frame.data) < AUDIBLE {
            continue;
        }
        let now = antiphon::clock::now();
        let mut seen = seen.lock();
        match seen.voice.last_mut() {
            Some(stretch) if now - stretch.to < HANG => stretch.to = now,
            _ => seen.voice.push(Stretch { from: now, to: now }),
        }
        drop(seen);
        changed.notify_waiters();
    }
}

/// A fixture's samples, mono at 16 kHz.
pub fn fixture(name: &str) -> Vec<i16> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/audio").join(name);
    let wav = antiphon::audio::wav::read(&path).expect("a fixture");
    antiphon::audio::resample::resample(&wav.samples, wav.sample_rate, RATE).expect("a common rate")
}
