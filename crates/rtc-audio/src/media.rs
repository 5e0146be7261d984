//! RTP of a peer: packets of audio out and in.

use std::sync::Arc;
use std::time::Instant;

use str0m::Input;
use str0m::format::Codec;
use str0m::media::Mid;
use str0m::rtp::{ExtensionValues, RtpPacket, RtpWrite};
use tracing::{debug, warn};

use crate::codec::packet_duration;
use crate::frame_crypto::{CLEAR_OPUS, FrameTransform, Transform};
use crate::jitter_buffer::{MAX_EXTENDED, Origin, Packet};
use crate::peer::{Event, Peer};
use crate::red::{self, Block};
use crate::send_queue::EncodedFrame;
use crate::transceiver::{MediaType, PayloadTypes, TransceiverId};

/// Above this level in dBov there may be a voice (the V bit of RFC 6464 §3): rooms are about as loud.
const QUIET: i8 = -60;

/// SSRCs remembered: a remote that changes them all the time costs no more memory.
const MAX_ROUTES: usize = 256;

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
        // str0m would queue for good what is written after either side's goodbye.
        if !self.rtc.is_connected() || self.closed || self.goodbye {
            return false;
        }
        let Some(mid) = self.transceivers.get(index).and_then(|t| t.mid) else { return false };
        let Some(types) = self.payload_types(index, mid) else { return false };
        let Some(transceiver) = self.transceivers.get_mut(index) else { return false };
        let Some(payload) = transceiver.sealing.apply(&frame.payload, CLEAR_OPUS) else {
            return false;
        };
        let mut direct = self.rtc.direct_api();
        let Some(stream) = direct.stream_tx_by_mid(mid, None) else { return false };
        let extensions = ExtensionValues {
            audio_level: Some(frame.level),
            voice_activity: Some(frame.level > QUIET),
            ..ExtensionValues::default()
        };
        // No copies of encrypted frames: LiveKit's SDKs send none either. Of clear ones there must be
        // copies where they were negotiated: a server passes on nothing else.
        let clear = Arc::ptr_eq(&payload, &frame.payload);
        let (payload_type, payload) = match types.red.filter(|_| clear) {
            Some(red) => (red, transceiver.red.wrap(types.opus, frame)),
            None => (types.opus, payload),
        };
        let bytes = payload.len() as u64;
        let sequence = transceiver.sequence.into();
        let write = RtpWrite::new(payload_type, sequence, frame.timestamp, now, payload)
            .marker(frame.marker)
            .ext_vals(extensions);
        transceiver.sequence += 1;
        transceiver.sent.packets += 1;
        transceiver.sent.bytes += bytes;
        transceiver.sent.ssrc = *stream.ssrc();
        stream.write_rtp(write);
        true
    }

    /// What packets of a section are sent as, `None` while it does not send.
    fn payload_types(&mut self, index: usize, mid: Mid) -> Option<PayloadTypes> {
        let media = self.rtc.media(mid)?;
        if !media.direction().is_sending() {
            return None;
        }
        let transceiver = self.transceivers.get_mut(index)?;
        if let Some(known) = transceiver.payload_types {
            return Some(known);
        }
        let remote = media.remote_pts();
        let opus =
            self.rtc.codec_config().iter().find(|params| {
                params.spec().codec == Codec::Opus && remote.contains(&params.pt())
            })?;
        let preferred = transceiver.opus_format().is_some_and(|format| format.red);
        let types = PayloadTypes { opus: opus.pt(), red: opus.red().filter(|_| preferred) };
        debug!(%mid, ?types, "payload types");
        transceiver.payload_types = Some(types);
        transceiver.red.reset();
        Some(types)
    }

    /// Says whether a transceiver may send redundant audio (RFC 2198) to a remote that prefers it.
    pub fn allow_red(&mut self, id: TransceiverId, allowed: bool) {
        if let Some(transceiver) = self.transceivers.iter_mut().find(|t| t.id == id) {
            transceiver.red_allowed = allowed;
            transceiver.payload_types = None;
        }
    }

    pub(crate) fn on_rtp(&mut self, packet: &RtpPacket) {
        let ssrc = packet.header.ssrc;
        let index = if let Some(index) = self.routes.get(&ssrc) {
            *index
        } else {
            let mid = self.rtc.direct_api().stream_rx(&ssrc).map(|stream| stream.mid());
            let Some(index) = mid.and_then(|mid| self.by_mid(mid)) else { return };
            if self.routes.len() >= MAX_ROUTES {
                self.routes.clear();
            }
            self.routes.insert(ssrc, index);
            index
        };
        let round_trip = self.stats().path.and_then(|path| path.round_trip);
        let Some(transceiver) = self.transceivers.get_mut(index) else { return };
        if transceiver.media != MediaType::Audio {
            return self.on_video(index, packet);
        }
        transceiver.received.count(*ssrc, *packet.seq_no, packet.payload.len());
        let id = transceiver.id;
        // A step back is a step back, wherever the stream began.
        let sequence = *packet.seq_no & MAX_EXTENDED;
        let timestamp = packet.time.numer() & MAX_EXTENDED;
        let pt = packet.header.payload_type;
        let red = self.rtc.codec_config().iter().find(|params| params.red() == Some(pt));
        let sealed = match red {
            Some(params) => red::blocks(&packet.payload)
                .and_then(Iterator::last)
                .filter(|primary| primary.payload_type == *params.pt())
                .map(|primary| Arc::from(primary.payload)),
            None => Some(Arc::clone(&packet.payload)),
        };
        // The count of frames of an encrypted packet can be read only after.
        let payload = sealed.and_then(|sealed| transceiver.opening.apply(&sealed, CLEAR_OPUS));
        let read = payload.and_then(|payload| Some((packet_duration(&payload)?, payload)));
        let Some((duration, payload)) = read else {
            transceiver.received.discarded += 1;
            return;
        };
        let filled = transceiver.arrivals.add(*ssrc, sequence, packet.timestamp);
        let resent = filled && transceiver.arrivals.was_asked_for(packet.timestamp);
        let audio = Packet {
            ssrc: *ssrc,
            sequence,
            timestamp,
            duration,
            arrival: packet.timestamp,
            origin: if resent { Origin::Resent } else { Origin::Sent },
            payload,
        };
        if let Some(params) = red {
            // Copies first: they are of the packets before.
            for block in red::blocks(&packet.payload).into_iter().flatten() {
                let sequence = sequence_of(&audio, &block)
                    .filter(|_| block.payload_type == *params.pt())
                    .filter(|sequence| transceiver.arrivals.misses(*sequence));
                let Some(sequence) = sequence else { continue };
                let payload = transceiver.opening.apply(&block.payload.into(), CLEAR_OPUS);
                let read = payload.and_then(|payload| Some((packet_duration(&payload)?, payload)));
                let Some((duration, payload)) = read else { continue };
                transceiver.arrivals.add(*ssrc, sequence, packet.timestamp);
                let copy = Packet {
                    sequence,
                    timestamp: audio.timestamp.saturating_sub(u64::from(block.offset)),
                    duration,
                    origin: Origin::Redundant,
                    payload,
                    ..audio
                };
                self.events.push_back(Event::Audio(id, copy));
            }
            self.events.push_back(Event::Audio(id, audio));
            return;
        }
        let ask = transceiver.arrivals.ask(packet.timestamp, round_trip);
        self.events.push_back(Event::Audio(id, audio));
        // str0m asks for nothing where no stream for retransmissions was negotiated, which audio
        // has not. Yet LiveKit's server answers with the packet itself. Asking only while
        // something is missing saves str0m's timer of 33 ms for the rest of the time. What
        // carries copies (RED) needs no asking.
        if let Some(ask) = ask
            && let Some(stream) = self.rtc.direct_api().stream_rx(&ssrc)
        {
            stream.suppress_nack(!ask);
        }
    }
}

/// Sequence number of the packet whose copy a RED packet carries: frames of one length follow one
/// another, so its time says which it is.
fn sequence_of(carrier: &Packet, copy: &Block<'_>) -> Option<u64> {
    if copy.offset == 0 || !copy.offset.is_multiple_of(carrier.duration) {
        return None;
    }
    carrier.sequence.checked_sub(u64::from(copy.offset / carrier.duration))
}
