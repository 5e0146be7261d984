//! RTP of a peer: packets of audio out and in.

use std::sync::Arc;
use std::time::Instant;

use str0m::Input;
use str0m::format::Codec;
use str0m::media::Mid;
use str0m::rtp::{ExtensionValues, RtpPacket, RtpWrite};
use tracing::warn;

use crate::codec::packet_duration;
use crate::frame_crypto::{CLEAR_OPUS, FrameTransform, Transform};
use crate::jitter_buffer::Packet;
use crate::peer::{Event, Peer};
use crate::send_queue::EncodedFrame;
use crate::transceiver::{MediaType, TransceiverId};

impl Peer {
    /// From now on every frame that a transceiver sends goes through `sealing` first.
    pub fn set_sealing(&mut self, id: TransceiverId, sealing: Option<Arc<dyn FrameTransform>>) {
        if let Some(transceiver) = self.transceivers.iter_mut().find(|t| t.id == id) {
            transceiver.sealing = Transform::new(sealing);
        }
    }

    /// From now on every frame that a transceiver receives goes through `opening` first.
    pub fn set_opening(&mut self, id: TransceiverId, opening: Option<Arc<dyn FrameTransform>>) {
        if let Some(transceiver) = self.transceivers.iter_mut().find(|t| t.id == id) {
            transceiver.opening = Transform::new(opening);
        }
    }

    /// Sends one packet of audio. Dropped and counted while the section is not negotiated for
    /// sending or the connection is not up; gives whether it went out.
    pub fn send_audio(&mut self, now: Instant, id: TransceiverId, frame: &EncodedFrame) -> bool {
        self.now = self.now.max(now);
        let Some(index) = self.transceivers.iter().position(|t| t.id == id) else { return false };
        let sent = self.write_audio(now, index, frame);
        if sent {
            if let Err(error) = self.rtc.handle_input(Input::Timeout(self.now)) {
                warn!(%error, "send");
            }
            self.drain();
        } else if let Some(transceiver) = self.transceivers.get_mut(index) {
            transceiver.sent.dropped += 1;
        }
        sent
    }

    fn write_audio(&mut self, now: Instant, index: usize, frame: &EncodedFrame) -> bool {
        if !self.rtc.is_connected() {
            return false;
        }
        let Some(mid) = self.transceivers.get(index).and_then(|t| t.mid) else { return false };
        let Some(payload_type) = self.opus_payload_type(index, mid) else { return false };
        let Some(transceiver) = self.transceivers.get_mut(index) else { return false };
        let Some(payload) = transceiver.sealing.apply(&frame.payload, CLEAR_OPUS) else {
            return false;
        };
        let mut direct = self.rtc.direct_api();
        let Some(stream) = direct.stream_tx_by_mid(mid, None) else { return false };
        let extensions = ExtensionValues {
            audio_level: Some(frame.level),
            voice_activity: Some(frame.level > -60),
            ..ExtensionValues::default()
        };
        let write = RtpWrite::new(
            payload_type,
            transceiver.sequence.into(),
            frame.timestamp,
            now,
            Arc::clone(&payload),
        )
        .marker(frame.marker)
        .ext_vals(extensions);
        transceiver.sequence += 1;
        transceiver.sent.packets += 1;
        transceiver.sent.bytes += payload.len() as u64;
        transceiver.sent.ssrc = *stream.ssrc();
        stream.write_rtp(write);
        true
    }

    fn opus_payload_type(&mut self, index: usize, mid: Mid) -> Option<str0m::media::Pt> {
        let media = self.rtc.media(mid)?;
        if !media.direction().is_sending() {
            return None;
        }
        if let Some(known) = self.transceivers.get(index)?.payload_type {
            return Some(known);
        }
        let remote = media.remote_pts();
        let opus = self
            .rtc
            .codec_config()
            .iter()
            .find(|params| params.spec().codec == Codec::Opus && remote.contains(&params.pt()))
            .map(str0m::format::PayloadParams::pt)?;
        self.transceivers.get_mut(index)?.payload_type = Some(opus);
        Some(opus)
    }

    pub(crate) fn on_rtp(&mut self, packet: &RtpPacket) {
        let ssrc = packet.header.ssrc;
        let index = if let Some(index) = self.routes.get(&ssrc) {
            *index
        } else {
            let mid = self.rtc.direct_api().stream_rx(&ssrc).map(|stream| stream.mid());
            let Some(index) = mid.and_then(|mid| self.by_mid(mid)) else { return };
            self.routes.insert(ssrc, index);
            index
        };
        let Some(transceiver) = self.transceivers.get_mut(index) else { return };
        if transceiver.media != MediaType::Audio {
            return self.on_video(index, packet);
        }
        transceiver.received.packets += 1;
        transceiver.received.bytes += packet.payload.len() as u64;
        transceiver.received.ssrc = *ssrc;
        // The count of frames of an encrypted packet can be read only after.
        let payload = transceiver.opening.apply(&packet.payload, CLEAR_OPUS);
        let read = payload.and_then(|payload| Some((packet_duration(&payload)?, payload)));
        let Some((duration, payload)) = read else {
            transceiver.received.discarded += 1;
            return;
        };
        let audio = Packet {
            sequence: *packet.seq_no,
            timestamp: packet.time.numer(),
            duration,
            arrival: packet.timestamp,
            payload,
        };
        self.events.push_back(Event::Audio(transceiver.id, audio));
    }
}
