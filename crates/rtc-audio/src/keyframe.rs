//! Key frames of the video that a peer receives.
//!
//! Video is not decoded here. A transceiver that is [watched](Peer::watch_key_frames) gives its
//! key frames of VP8; the packets of the others are dropped as soon as they are seen.

use std::sync::Arc;
use std::time::Instant;

use str0m::Input;
use str0m::format::Codec;
use str0m::media::KeyframeRequestKind;
use str0m::rtp::RtpPacket;
use tracing::{debug, warn};

use crate::frame_crypto::CLEAR_VP8_KEY;
use crate::peer::{Event, Peer};
use crate::transceiver::TransceiverId;
use crate::vp8::{self, KeyFrames};

/// A server fills a track that stops with frames of this width and height, at most.
const BLANK: u16 = 8;

/// What encoded a video.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum VideoCodec {
    /// RFC 6386.
    Vp8,
}

/// A whole picture of a video.
#[derive(Debug, Clone)]
pub struct KeyFrame {
    /// What encoded it.
    pub codec: VideoCodec,
    /// In pixels.
    pub width: u16,
    /// In pixels.
    pub height: u16,
    /// RTP time, in 1/90000 s.
    pub timestamp: u32,
    /// When its last packet came.
    pub arrival: Instant,
    /// The encoded frame.
    pub data: Arc<[u8]>,
}

impl KeyFrame {
    /// The picture as a WebP file.
    pub fn to_webp(&self) -> Vec<u8> {
        match self.codec {
            VideoCodec::Vp8 => vp8::to_webp(&self.data),
        }
    }
}

impl Peer {
    /// From now on gives the key frames of a transceiver, or no longer.
    pub fn watch_key_frames(&mut self, id: TransceiverId, watch: bool) {
        if let Some(transceiver) = self.transceivers.iter_mut().find(|t| t.id == id) {
            if !watch {
                transceiver.key_frames = None;
            } else if transceiver.key_frames.is_none() {
                transceiver.key_frames = Some(Box::new(KeyFrames::new()));
            }
        }
    }

    /// Asks the sender of a video for a key frame (RFC 4585 §6.3.1). Says whether that could be
    /// asked: not before the video's first packet.
    pub fn request_key_frame(&mut self, now: Instant, id: TransceiverId) -> bool {
        self.now = self.now.max(now);
        let Some(transceiver) = self.transceiver(id) else { return false };
        let ssrc = transceiver.received.ssrc;
        let mut direct = self.rtc.direct_api();
        let Some(stream) = direct.stream_rx(&ssrc.into()) else { return false };
        stream.request_keyframe(KeyframeRequestKind::Pli);
        if let Err(error) = self.rtc.handle_input(Input::Timeout(self.now)) {
            warn!(%error, "key frame");
        }
        self.drain();
        true
    }

    pub(crate) fn on_video(&mut self, index: usize, packet: &RtpPacket) {
        let Some(transceiver) = self.transceivers.get_mut(index) else { return };
        let ssrc = *packet.header.ssrc;
        let before = std::mem::replace(&mut transceiver.received.ssrc, ssrc);
        let Some(frames) = &mut transceiver.key_frames else { return };
        if ssrc != before {
            // Another sender's numbers begin anew.
            **frames = KeyFrames::new();
        }
        let codec = self.rtc.codec_config().iter();
        let mut codec = codec.filter(|params| params.pt() == packet.header.payload_type);
        if codec.next().is_none_or(|params| params.spec().codec != Codec::Vp8) {
            return;
        }
        transceiver.received.packets += 1;
        transceiver.received.bytes += packet.payload.len() as u64;
        let header = &packet.header;
        let frame = frames.push(*packet.seq_no, header.timestamp, header.marker, &packet.payload);
        let Some(frame) = frame else { return };
        let Some(data) = transceiver.opening.apply(&frame.into(), CLEAR_VP8_KEY) else {
            transceiver.received.discarded += 1;
            return;
        };
        let Some((width, height)) = vp8::dimensions(&data) else {
            debug!("a key frame is not well-formed");
            transceiver.received.discarded += 1;
            return;
        };
        if width > BLANK || height > BLANK {
            let (timestamp, arrival) = (header.timestamp, packet.timestamp);
            let codec = VideoCodec::Vp8;
            let frame = KeyFrame { codec, width, height, timestamp, arrival, data };
            self.events.push_back(Event::KeyFrame(transceiver.id, frame));
        }
    }
}
