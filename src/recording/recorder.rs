//! The worker's own recorder: one stereo Ogg Opus file a session, for where no LiveKit Egress runs.
//!
//! What has been written is playable whenever the process dies, up to about a second. Beside the
//! file lies a descriptor under a lock; one on which nobody holds it is a dead worker's, and its
//! recording is told of at the next start.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use opus::{Application, Bitrate, Channels, Encoder};
use serde::{Deserialize, Serialize};
use tokio::{sync::mpsc, task::JoinHandle};

use super::{
    RecordingKey,
    mix::{Cursor, FRAME, RATE, Side, Timeline},
    ogg::{self, OggOpus},
    sealed,
    storage::Storage,
};
use crate::{
    audio::resample::Resampler,
    clock,
    files::lock_existing,
    session::ports::{Microphone, Voice},
    transcript::reporter::{Reporter, SessionInfo, SessionReporter},
    transcript::wire::RecordingItem,
};

/// Pieces of 10 ms that wait for the disk; more is dropped and counted.
const QUEUE: usize = 2_000;
const BITRATE: i32 = 32_000;
/// Packets of 20 ms in one page: about a second is lost at most.
const PAGE: usize = 50;
const TICK: Duration = Duration::from_millis(100);
/// Opus packets are smaller (RFC 6716 §3.4).
const MAX_PACKET: usize = 1_275;
/// Of what an Opus frame plays, at 48 kHz.
const SAMPLES: u64 = ogg::RATE / 50;

/// Where and how a worker records.
#[derive(Debug, Clone)]
pub struct RecorderConfig {
    /// Where files are written.
    pub directory: PathBuf,
    /// Where they go when they are whole; None: they stay.
    pub upload: Option<Storage>,
    /// Encrypts them at rest.
    pub key: Option<RecordingKey>,
}

/// Enough to tell of a recording whose worker has died.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Descriptor {
    session: SessionInfo,
    recording: RecordingItem,
}

/// A recording in progress. Clones write to the same file; it ends when [`Recording::finish`] is
/// called.
#[derive(Debug, Clone)]
pub struct Tap {
    pieces: mpsc::Sender<Piece>,
    side: Side,
    /// Which stream: every microphone has its own place in time.
    stream: u32,
}

#[derive(Debug)]
struct Piece {
    side: Side,
    stream: u32,
    sound: Sound,
    at: std::time::Instant,
}

#[derive(Debug)]
enum Sound {
    Samples(Vec<i16>),
    /// What was handed over and is not heard yet never will be.
    Cleared,
}

#[derive(Debug)]
pub struct Recording {
    pieces: mpsc::Sender<Piece>,
    streams: u32,
    task: JoinHandle<io::Result<Written>>,
    descriptor: Descriptor,
    files: Files,
    config: RecorderConfig,
}

#[derive(Debug)]
struct Files {
    sound: PathBuf,
    descriptor: PathBuf,
    /// Held until the recording is told of.
    _lock: File,
}

#[derive(Debug, Clone, Copy)]
struct Written {
    bytes: u64,
    duration_ms: u64,
}

impl Recording {
    /// Begins a recording of this session. Runs in a tokio runtime.
    pub fn start(config: &RecorderConfig, session: &SessionInfo) -> io::Result<Self> {
        let now = clock::unix_ms();
        let id = uuid::Uuid::new_v4().to_string();
        let folder = format!("recordings/rooms/{}", path_part(&session.room));
        let filename = format!("recording-{now}.ogg");
        let recording = RecordingItem {
            object_key: format!("{folder}/{id}.ogg"),
            filename,
            track_type: "stereo".into(),
            duration_ms: 0,
            file_size: 0,
            encrypted: config.key.is_some(),
            created_at_unix_ms: now,
            id,
        };
        let descriptor = Descriptor { session: session.clone(), recording };
        let sound = config.directory.join(&descriptor.recording.object_key);
        if let Some(folder) = sound.parent() {
            fs::create_dir_all(folder)?;
        }
        let pending = config.directory.join("pending");
        fs::create_dir_all(&pending)?;
        let path = pending.join(format!("{}.json", descriptor.recording.id));
        let lock = locked(&path, &descriptor)?;
        let file = OpenOptions::new().write(true).create_new(true).open(&sound)?;
        let writer = Writer::new(file, config.key.as_ref())?;
        let (pieces, queue) = mpsc::channel(QUEUE);
        let task = tokio::spawn(write(writer, queue));
        let files = Files { sound, descriptor: path, _lock: lock };
        Ok(Self { pieces, streams: 0, task, descriptor, files, config: config.clone() })
    }

    /// What one participant says, as the agent hears it.
    pub fn microphone(&mut self, inner: Box<dyn Microphone>) -> Box<dyn Microphone> {
        Box::new(RecordedMicrophone { inner, tap: self.tap(Side::User) })
    }

    /// As [`Recording::microphone`], in place.
    pub fn tap_into(&mut self, microphone: &mut Box<dyn Microphone>) {
        let inner = std::mem::replace(microphone, Box::new(Nobody));
        *microphone = self.microphone(inner);
    }

    /// What the agent says, at the voice's rate.
    pub fn voice(&mut self, inner: Box<dyn Voice>, rate: u32) -> Box<dyn Voice> {
        let tap = self.tap(Side::Agent);
        match Resampler::new(rate, RATE) {
            Ok(resampler) => Box::new(RecordedVoice { inner, tap, resampler }),
            Err(error) => {
                tracing::error!(%error, "the agent's voice is not recorded");
                inner
            }
        }
    }

    fn tap(&mut self, side: Side) -> Tap {
        self.streams += 1;
        Tap { pieces: self.pieces.clone(), side, stream: self.streams }
    }

    /// Ends the file, and reports it. All taps must be gone, or soon be.
    pub async fn finish(self, reporter: &SessionReporter) {
        let Self { pieces, task, mut descriptor, files, config, .. } = self;
        drop(pieces);
        match task.await {
            Ok(Ok(written)) => {
                descriptor.recording.duration_ms = written.duration_ms;
                descriptor.recording.file_size = written.bytes;
                tell(&config, &descriptor, &files, reporter).await;
            }
            // The descriptor stays: the next start tries to save what is there.
            Ok(Err(error)) => tracing::error!(%error, "a recording could not be written"),
            Err(error) => tracing::error!(%error, "a recording broke"),
        }
    }
}

/// Brings the file where it belongs, and then has it reported; whatever fails is tried again at the
/// next start.
async fn tell(
    config: &RecorderConfig,
    descriptor: &Descriptor,
    files: &Files,
    reporter: &SessionReporter,
) {
    if let Some(storage) = &config.upload
        && let Err(error) = storage.put_file(&descriptor.recording.object_key, &files.sound).await
    {
        tracing::error!(%error, "a recording could not be uploaded: the next start tries again");
        return;
    }
    if reporter.recording(&descriptor.recording).await.is_err() {
        // Logged there.
        return;
    }
    let remove = |path: &Path| {
        if let Err(error) = fs::remove_file(path) {
            tracing::warn!(%error, path = %path.display(), "a file of a recording stays");
        }
    };
    if config.upload.is_some() {
        remove(&files.sound);
    }
    remove(&files.descriptor);
}

/// Saves what workers that died have recorded; how many there were.
pub async fn recover(config: &RecorderConfig, reporter: &Reporter) -> io::Result<usize> {
    let pending = config.directory.join("pending");
    let entries = match fs::read_dir(&pending) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut saved = 0;
    for entry in entries {
        let path = entry?.path();
        let Some((lock, mut descriptor)) = left_behind(&path)? else { continue };
        let sound = config.directory.join(&descriptor.recording.object_key);
        let Some(written) = repair(&sound, config.key.as_ref()) else {
            tracing::warn!(path = %sound.display(), "a dead worker's recording cannot be read");
            continue;
        };
        descriptor.recording.duration_ms = written.duration_ms;
        descriptor.recording.file_size = written.bytes;
        let session = reporter.session(descriptor.session.clone());
        let files = Files { sound, descriptor: path, _lock: lock };
        tell(config, &descriptor, &files, &session).await;
        saved += 1;
    }
    Ok(saved)
}

/// Cuts off what is torn at the end; what is left. `None`: not a recording of ours, or another key.
fn repair(sound: &Path, key: Option<&RecordingKey>) -> Option<Written> {
    let bytes = fs::read(sound).ok()?;
    let (plain, whole) = match key {
        None => {
            let whole = ogg::pages(&bytes).1;
            (bytes, whole as u64)
        }
        Some(key) => {
            let opener = sealed::Opener::new(key, &bytes)?;
            let (plain, whole) = opener.open_whole(&bytes);
            (plain, whole)
        }
    };
    let (pages, length) = ogg::pages(&plain);
    let granule = pages.last()?.granule;
    let file = OpenOptions::new().write(true).open(sound).ok()?;
    file.set_len(whole).ok()?;
    file.sync_all().ok()?;
    // Sealed chunks and pages do not end at the same place: a player passes over the torn page.
    let bytes = if key.is_some() { plain.len() } else { length } as u64;
    Some(Written { bytes, duration_ms: granule * 1000 / ogg::RATE })
}

/// A descriptor that nobody holds.
fn left_behind(path: &Path) -> io::Result<Option<(File, Descriptor)>> {
    if path.extension().is_none_or(|extension| extension != "json") {
        return Ok(None);
    }
    let Some((file, _)) = lock_existing(path)? else { return Ok(None) };
    let bytes = fs::read(path)?;
    Ok(serde_json::from_slice(&bytes).ok().map(|descriptor| (file, descriptor)))
}

fn locked(path: &Path, descriptor: &Descriptor) -> io::Result<File> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => io::ErrorKind::WouldBlock.into(),
        TryLockError::Error(error) => error,
    })?;
    file.write_all(&serde_json::to_vec(descriptor)?)?;
    file.sync_all()?;
    Ok(file)
}

/// Of a room's name, what can stand in a path.
fn path_part(name: &str) -> String {
    let fits = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_') { c } else { '_' };
    name.chars().take(100).map(fits).collect()
}

impl Tap {
    fn hear(&self, samples: Vec<i16>) {
        if !samples.is_empty() {
            self.tell(Sound::Samples(samples));
        }
    }

    fn tell(&self, sound: Sound) {
        let piece = Piece { side: self.side, stream: self.stream, sound, at: clock::now() };
        if self.pieces.try_send(piece).is_err() {
            metrics::counter!("antiphon_recording_dropped_total").increment(1);
        }
    }
}

#[derive(Debug)]
struct RecordedMicrophone {
    inner: Box<dyn Microphone>,
    tap: Tap,
}

#[async_trait::async_trait]
impl Microphone for RecordedMicrophone {
    async fn read(&mut self, into: &mut Vec<i16>) -> bool {
        let before = into.len();
        let more = self.inner.read(into).await;
        self.tap.hear(into.get(before..).unwrap_or_default().to_vec());
        more
    }

    fn set_batching(&mut self, batching: bool) {
        self.inner.set_batching(batching);
    }

    fn may_be_heard_in_place(&self) -> bool {
        self.inner.may_be_heard_in_place()
    }
}

/// Stands in while a microphone is being wrapped.
#[derive(Debug)]
struct Nobody;

#[async_trait::async_trait]
impl Microphone for Nobody {
    async fn read(&mut self, _into: &mut Vec<i16>) -> bool {
        false
    }
}

#[derive(Debug)]
struct RecordedVoice {
    inner: Box<dyn Voice>,
    tap: Tap,
    resampler: Resampler,
}

#[async_trait::async_trait]
impl Voice for RecordedVoice {
    async fn write(&mut self, frame: &[i16]) {
        let mut samples = Vec::with_capacity(frame.len());
        self.resampler.push(frame, &mut samples);
        self.tap.hear(samples);
        self.inner.write(frame).await;
    }

    fn clear(&mut self) {
        self.inner.clear();
        self.tap.tell(Sound::Cleared);
    }
}

/// Until every tap is gone.
async fn write(mut writer: Writer, mut queue: mpsc::Receiver<Piece>) -> io::Result<Written> {
    let mut timeline = Timeline::new(clock::now());
    let mut cursors = std::collections::HashMap::<u32, Cursor>::new();
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let over = tokio::select! {
            biased;
            piece = queue.recv() => match piece {
                Some(piece) => {
                    let cursor = cursors.entry(piece.stream).or_default();
                    match &piece.sound {
                        Sound::Samples(samples) => {
                            timeline.lay(piece.side, cursor, samples, piece.at);
                        }
                        Sound::Cleared => timeline.cut(piece.side, cursor, piece.at),
                    }
                    continue;
                }
                None => true,
            },
            _ = ticks.tick() => false,
        };
        while let Some(frame) = timeline.next_frame(clock::now(), over) {
            writer.frame(&frame)?;
        }
        if over {
            // A disk may be slow.
            return tokio::task::spawn_blocking(move || writer.finish()).await?;
        }
    }
}

#[derive(Debug)]
struct Writer {
    file: File,
    encoder: Encoder,
    ogg: OggOpus,
    sealer: Option<sealed::Sealer>,
    packets: usize,
    /// Of sound, and of bytes as a reader gets them.
    frames: u64,
    bytes: u64,
}

impl Writer {
    fn new(file: File, key: Option<&RecordingKey>) -> io::Result<Self> {
        let mut encoder =
            Encoder::new(RATE, Channels::Stereo, Application::Voip).map_err(io::Error::other)?;
        encoder.set_bitrate(Bitrate::Bits(BITRATE)).map_err(io::Error::other)?;
        let skip = encoder.get_lookahead().map_err(io::Error::other)?;
        let skip = skip as u64 * ogg::RATE / u64::from(RATE);
        let (ogg, header) = OggOpus::new(clock::unix_ms() as u32, 2, skip as u16, RATE);
        let sealer = match key {
            Some(key) => Some(sealed::Sealer::new(key).ok_or(io::ErrorKind::Other)?),
            None => None,
        };
        let mut writer = Self { file, encoder, ogg, sealer, packets: 0, frames: 0, bytes: 0 };
        if let Some(sealer) = &writer.sealer {
            let header = sealer.header();
            writer.file.write_all(&header)?;
        }
        writer.write(&header)?;
        Ok(writer)
    }

    fn frame(&mut self, frame: &[i16; 2 * FRAME]) -> io::Result<()> {
        let mut packet = [0; MAX_PACKET];
        let length = self.encoder.encode(frame, &mut packet).map_err(io::Error::other)?;
        let full = self.ogg.packet(&packet[..length], SAMPLES);
        if let Some(page) = full {
            self.write(&page)?;
        }
        self.frames += 1;
        self.packets += 1;
        if self.packets >= PAGE {
            self.packets = 0;
            if let Some(page) = self.ogg.flush() {
                self.write(&page)?;
            }
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes += bytes.len() as u64;
        match &mut self.sealer {
            Some(sealer) => {
                let chunks = sealer.write(bytes).ok_or(io::ErrorKind::Other)?;
                self.file.write_all(&chunks)
            }
            None => self.file.write_all(bytes),
        }
    }

    fn finish(mut self) -> io::Result<Written> {
        let page = self.ogg.finish();
        self.write(&page)?;
        if let Some(sealer) = &mut self.sealer {
            let chunk = sealer.finish().ok_or(io::ErrorKind::Other)?;
            self.file.write_all(&chunk)?;
        }
        self.file.sync_all()?;
        Ok(Written { bytes: self.bytes, duration_ms: self.frames * 20 })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use async_trait::async_trait;
    use opus::Decoder;
    use parking_lot::Mutex;

    use super::*;
    use crate::transcript::reporter::{DEFAULT_OUTBOX_CAP, ReporterConfig};

    /// A microphone that hums for so many pieces of 10 ms, in real pace of a paused clock.
    #[derive(Debug)]
    struct Hum(usize);

    #[async_trait]
    impl Microphone for Hum {
        async fn read(&mut self, into: &mut Vec<i16>) -> bool {
            tokio::time::sleep(Duration::from_millis(10)).await;
            into.extend((0..160).map(|n| if n % 40 < 20 { 8_000 } else { -8_000 }));
            self.0 -= 1;
            self.0 > 0
        }
    }

    #[derive(Debug, Clone, Default)]
    struct Track(Arc<Mutex<usize>>);

    #[async_trait]
    impl Voice for Track {
        async fn write(&mut self, frame: &[i16]) {
            *self.0.lock() += frame.len();
        }

        fn clear(&mut self) {}
    }

    async fn reporter(directory: &Path) -> Reporter {
        Reporter::start(ReporterConfig {
            state_dir: directory.to_owned(),
            control_url: None,
            token: None,
            outbox_cap: DEFAULT_OUTBOX_CAP,
        })
        .await
        .unwrap()
    }

    fn info() -> SessionInfo {
        SessionInfo {
            room: "a room/1".into(),
            session_key: "RM_1".into(),
            agent: "assistant".into(),
            started_at_unix_ms: 1,
        }
    }

    /// A user, and after a second the agent.
    async fn record(recording: &mut Recording, seconds: usize) {
        let mut microphone = recording.microphone(Box::new(Hum(100 * seconds)));
        let mut voice = recording.voice(Box::new(Track::default()), 24_000);
        let mut heard = Vec::new();
        let mut piece = 0;
        while microphone.read(&mut heard).await {
            piece += 1;
            if piece > 100 {
                // No constant: Opus takes that away.
                let hum: Vec<i16> =
                    (0..240).map(|n| if n % 60 < 30 { 3_000 } else { -3_000 }).collect();
                voice.write(&hum).await;
            }
        }
    }

    fn energies(bytes: &[u8]) -> (Vec<f64>, u64) {
        let (pages, whole) = ogg::pages(bytes);
        assert_eq!(whole, bytes.len());
        let mut decoder = Decoder::new(RATE, Channels::Stereo).unwrap();
        let mut sums = [0.0; 4];
        for (frames, packet) in pages[2..].iter().flat_map(|page| &page.packets).enumerate() {
            let mut pcm = [0; 2 * FRAME];
            decoder.decode(packet, &mut pcm, false).unwrap();
            for (channel, sample) in [0, 1].into_iter().cycle().zip(pcm) {
                let second = usize::from(frames >= 50);
                sums[2 * second + channel] += f64::from(sample).powi(2);
            }
        }
        (sums.iter().map(|sum| (sum / 16_000.0).sqrt()).collect(), pages.last().unwrap().granule)
    }

    #[tokio::test(start_paused = true)]
    async fn users_are_on_the_left_and_the_agent_on_the_right() {
        let directory = tempfile::tempdir().unwrap();
        let config = RecorderConfig { directory: directory.path().into(), upload: None, key: None };
        let mut recording = Recording::start(&config, &info()).unwrap();
        record(&mut recording, 2).await;
        let sound = recording.files.sound.clone();
        let session = reporter(directory.path()).await.session(info());
        recording.finish(&session).await;
        let bytes = fs::read(&sound).unwrap();
        let (energy, granule) = energies(&bytes);
        assert!((95_000..105_000).contains(&granule), "{granule}: two seconds");
        assert!(energy[0] > 4_000.0 && energy[2] > 4_000.0, "{energy:?}: the user all along");
        assert!(energy[1] < 500.0 && energy[3] > 500.0, "{energy:?}: the agent later");
        assert!(fs::read_dir(directory.path().join("pending")).unwrap().next().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_dead_worker_recorded_is_saved_at_the_next_start() {
        for key in [None, Some(RecordingKey([3; 32]))] {
            let directory = tempfile::tempdir().unwrap();
            let config = RecorderConfig { directory: directory.path().into(), upload: None, key };
            let mut recording = Recording::start(&config, &info()).unwrap();
            record(&mut recording, 6).await;
            let (sound, name) =
                (recording.files.sound.clone(), recording.descriptor.recording.object_key.clone());
            let reporter = reporter(directory.path()).await;
            assert_eq!(recover(&config, &reporter).await.unwrap(), 0, "it is still being made");
            // Dies: nothing is finished, and the last write was torn.
            recording.task.abort();
            drop(recording);
            tokio::task::yield_now().await;
            let mut file = OpenOptions::new().append(true).open(&sound).unwrap();
            file.write_all(b"OggS torn").unwrap();
            assert_eq!(recover(&config, &reporter).await.unwrap(), 1);
            let encrypted = config.key.is_some();
            let storage = Storage::local(&config.directory, config.key.clone()).unwrap();
            let found = storage.find(&name, encrypted).await.unwrap();
            assert!(found.size > 500, "{}", found.size);
            assert_eq!(recover(&config, &reporter).await.unwrap(), 0);
        }
    }
}
