//! Transceivers: what one media section sends and receives.

use std::fmt::{self, Debug};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rtc_audio::frame_crypto::FrameTransform;
use rtc_audio::jitter_buffer::Packet;
use rtc_audio::keyframe::KeyFrame;
use rtc_audio::sdp::Direction;
use rtc_audio::transceiver::{MediaType, Transceiver, TransceiverId};

use crate::RtcError;
use crate::audio_track::{Kind, RtcAudioTrack};
use crate::engine::connection::Connection;
use crate::engine::sink::RemoteAudio;
use crate::engine::video::RemoteVideo;
use crate::media_stream_track::MediaStreamTrack;
use crate::native::{create_random_uuid, frame_cryptor};
use crate::rtp_parameters::{RtpCodecCapability, RtpEncodingParameters, allows_red};
use crate::rtp_receiver::RtpReceiver;
use crate::rtp_sender::RtpSender;
use crate::video_track::RtcVideoTrack;

/// How a transceiver is to be made.
#[derive(Debug, Clone)]
pub struct RtpTransceiverInit {
    /// What it does.
    pub direction: RtpTransceiverDirection,
    /// Streams its track belongs to; the first counts.
    pub stream_ids: Vec<String>,
    /// For audio, the first one's `max_bitrate` counts.
    pub send_encodings: Vec<RtpEncodingParameters>,
}

/// What a transceiver does.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum RtpTransceiverDirection {
    /// Both.
    SendRecv,
    /// Sends.
    SendOnly,
    /// Receives.
    RecvOnly,
    /// Neither, for now.
    Inactive,
    /// Neither, for good.
    Stopped,
}

impl From<Direction> for RtpTransceiverDirection {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::SendRecv => Self::SendRecv,
            Direction::SendOnly => Self::SendOnly,
            Direction::RecvOnly => Self::RecvOnly,
            Direction::Inactive => Self::Inactive,
        }
    }
}

impl RtpTransceiverDirection {
    pub(crate) fn to_engine(self) -> Direction {
        match self {
            Self::SendRecv => Direction::SendRecv,
            Self::SendOnly => Direction::SendOnly,
            Self::RecvOnly => Direction::RecvOnly,
            Self::Inactive | Self::Stopped => Direction::Inactive,
        }
    }
}

/// What all handles to one transceiver share.
pub(crate) struct TransceiverHandle {
    pub(crate) id: TransceiverId,
    pub(crate) media: MediaType,
    pub(crate) connection: Weak<Connection>,
    pub(crate) sending: Mutex<Option<MediaStreamTrack>>,
    pub(crate) encodings: Mutex<Vec<RtpEncodingParameters>>,
    pub(crate) receiving: Mutex<Receiving>,
    /// A cryptor sees to what goes out.
    sealed: AtomicBool,
}

pub(crate) struct Receiving {
    pub(crate) track: MediaStreamTrack,
    pub(crate) streams: Vec<String>,
    /// The track belongs to a stream of the remote, or did.
    used: bool,
}

fn remote_track(
    connection: &Weak<Connection>,
    transceiver: TransceiverId,
    media: MediaType,
) -> MediaStreamTrack {
    let id = create_random_uuid();
    match media {
        MediaType::Audio => {
            let playing = connection.upgrade().map(|connection| Arc::clone(&connection.listeners));
            let remote = RemoteAudio::new(playing.unwrap_or_default());
            RtcAudioTrack::new(&id, Kind::Remote(Arc::new(remote))).into()
        }
        MediaType::Video => {
            let remote = RemoteVideo::new(Weak::clone(connection), transceiver);
            RtcVideoTrack::new(&id, Some(remote)).into()
        }
    }
}

fn end_track(track: &MediaStreamTrack) {
    match track {
        MediaStreamTrack::Audio(track) => {
            if let Kind::Remote(remote) = &track.kind {
                remote.end();
            }
        }
        MediaStreamTrack::Video(track) => track.end(),
    }
}

impl TransceiverHandle {
    pub(crate) fn new(
        connection: &Arc<Connection>,
        id: TransceiverId,
        media: MediaType,
        encodings: Vec<RtpEncodingParameters>,
    ) -> Arc<Self> {
        let connection = Arc::downgrade(connection);
        let track = remote_track(&connection, id, media);
        Arc::new(Self {
            id,
            media,
            connection,
            sending: Mutex::new(None),
            encodings: Mutex::new(encodings),
            receiving: Mutex::new(Receiving { track, streams: Vec::new(), used: false }),
            sealed: AtomicBool::new(false),
        })
    }

    /// From now on everything sent here goes through `sealing`.
    pub(crate) fn set_sealing(&self, sealing: Arc<dyn FrameTransform>) {
        self.sealed.store(true, Ordering::Release);
        if let Some(connection) = self.connection.upgrade() {
            connection.with(|state| state.peer.set_sealing(self.id, Some(sealing)));
        }
    }

    /// From now on everything received here goes through `opening`.
    pub(crate) fn set_opening(&self, opening: Option<Arc<dyn FrameTransform>>) {
        if let Some(connection) = self.connection.upgrade() {
            connection.with(|state| state.peer.set_opening(self.id, opening));
        }
    }

    /// A section that carries another stream than before gets another track, so that no listener
    /// of one participant hears the next.
    pub(crate) fn remote_started(&self, streams: Vec<String>) {
        let mut receiving = self.receiving.lock();
        if receiving.used {
            end_track(&receiving.track);
            receiving.track = remote_track(&self.connection, self.id, self.media);
        }
        receiving.used = true;
        receiving.streams = streams;
    }

    pub(crate) fn remote_ended(&self) {
        let mut receiving = self.receiving.lock();
        end_track(&receiving.track);
        receiving.streams.clear();
    }

    pub(crate) fn deliver(&self, packet: &Packet) {
        if let MediaStreamTrack::Audio(track) = &self.receiving.lock().track
            && let Kind::Remote(remote) = &track.kind
        {
            remote.deliver(packet);
        }
    }

    pub(crate) fn deliver_key_frame(&self, frame: &KeyFrame) {
        if let MediaStreamTrack::Video(track) = &self.receiving.lock().track
            && let Some(remote) = track.remote()
        {
            remote.deliver(frame);
        }
    }

    /// Says whether somebody watches the video that comes now.
    pub(crate) fn is_watched(&self) -> bool {
        let receiving = self.receiving.lock();
        let MediaStreamTrack::Video(track) = &receiving.track else { return false };
        track.remote().is_some_and(|remote| remote.is_watched())
    }

    pub(crate) fn end(&self) {
        end_track(&self.receiving.lock().track);
    }

    /// Replaces what is sent, feeding the new track's samples to this section.
    pub(crate) fn set_sending(
        &self,
        connection: &Arc<Connection>,
        track: Option<MediaStreamTrack>,
    ) {
        // First the old: it may be the same.
        let old = std::mem::replace(&mut *self.sending.lock(), track.clone());
        if let Some(MediaStreamTrack::Audio(old)) = old
            && let Kind::Local(local) = &old.kind
        {
            local.detach(self.id, connection);
        }
        if let Some(MediaStreamTrack::Audio(new)) = &track
            && let Kind::Local(local) = &new.kind
        {
            if let Some(bitrate) = self.encodings.lock().first().and_then(|e| e.max_bitrate) {
                local.set_bitrate(bitrate);
            }
            if !self.sealed.load(Ordering::Acquire)
                && let Some(undecided) = frame_cryptor::undecided()
            {
                connection.with(|state| state.peer.set_sealing(self.id, Some(undecided)));
            }
            local.attach(connection, self.id);
        }
    }

    fn read<R>(&self, read: impl FnOnce(&Transceiver) -> R) -> Option<R> {
        let connection = self.connection.upgrade()?;
        connection.read(|state| state.peer.transceiver(self.id).map(read))
    }
}

/// A handle to a transceiver.
#[derive(Clone)]
pub struct RtpTransceiver {
    pub(crate) handle: Arc<TransceiverHandle>,
}

impl RtpTransceiver {
    /// Mid of its section, once an offer with it is out.
    pub fn mid(&self) -> Option<String> {
        self.handle.read(Transceiver::mid).flatten()
    }

    /// What was negotiated.
    pub fn current_direction(&self) -> Option<RtpTransceiverDirection> {
        self.handle.read(Transceiver::current_direction).flatten().map(Into::into)
    }

    /// What is wanted.
    pub fn direction(&self) -> RtpTransceiverDirection {
        self.handle.read(|t| t.direction().into()).unwrap_or(RtpTransceiverDirection::Stopped)
    }

    /// Its sending half.
    pub fn sender(&self) -> RtpSender {
        RtpSender { handle: Arc::clone(&self.handle) }
    }

    /// Its receiving half.
    pub fn receiver(&self) -> RtpReceiver {
        RtpReceiver { handle: Arc::clone(&self.handle) }
    }

    /// Audio is always Opus, and video is not sent. Preferences without `audio/red` keep redundant
    /// audio (RFC 2198) from being sent.
    pub fn set_codec_preferences(&self, codecs: Vec<RtpCodecCapability>) -> Result<(), RtcError> {
        if let Some(connection) = self.handle.connection.upgrade() {
            let allowed = allows_red(&codecs);
            connection.with(|state| state.peer.allow_red(self.handle.id, allowed));
        }
        Ok(())
    }

    /// Stops sending; the section becomes inactive with the next offer.
    pub fn stop(&self) -> Result<(), RtcError> {
        let Some(connection) = self.handle.connection.upgrade() else {
            return Err(RtcError::state("the connection is closed"));
        };
        self.handle.set_sending(&connection, None);
        connection.with(|state| state.peer.stop_transceiver(self.handle.id));
        self.handle.end();
        Ok(())
    }
}

impl Debug for RtpTransceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RtpTransceiver")
            .field("mid", &self.mid())
            .field("direction", &self.direction())
            .field("sealed", &self.handle.sealed.load(Ordering::Relaxed))
            .finish_non_exhaustive()
    }
}
