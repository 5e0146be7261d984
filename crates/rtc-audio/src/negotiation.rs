//! Offer and answer (RFC 8829, RFC 3264) over str0m.

use std::collections::HashSet;
use std::mem;

use str0m::change::{SdpAnswer, SdpOffer, SdpPendingOffer};
use str0m::channel::ChannelConfig;
use str0m::media::{Direction as RtcDirection, Mid};
use tracing::{debug, warn};

use crate::opus_format::{opus_formats, with_opus_first};
use crate::peer::{CONNECT_WITHIN, Peer, PeerError};
use crate::sdp::{self, Direction, Kind, Section};
use crate::transceiver::{MediaType, TrackChange, Transceiver, TransceiverId};

/// str0m writes an `m=application` section only for a channel that is added in the offer, and
/// such a channel cannot be taken back when the offer is. So the section is made by a negotiated
/// channel on a stream nobody uses: it sends nothing, and every offer may have its own.
const FIRST_ANCHOR: u16 = 1_000;
const ANCHORS: u16 = 1_000;
const ANCHOR_LABEL: &str = "\u{1}anchor";

/// Where offer and answer stand (W3C `RTCSignalingState`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SignalingState {
    /// Nothing is out.
    #[default]
    Stable,
    /// Our offer waits for its answer.
    HaveLocalOffer,
    /// Their offer waits for our answer.
    HaveRemoteOffer,
    /// The connection is closed.
    Closed,
}

enum Pending {
    Changes(SdpPendingOffer),
    /// The offer repeats what holds: nothing to commit.
    Unchanged,
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Changes(_) => "Changes",
            Self::Unchanged => "Unchanged",
        })
    }
}

/// Descriptions and what is pending of them.
#[derive(Debug, Default)]
pub(crate) struct Negotiation {
    signaling: SignalingState,
    pending: Option<Pending>,
    answer: Option<String>,
    pending_local: Option<String>,
    pending_remote: Option<String>,
    /// The text and whether it is an answer.
    local: Option<(String, bool)>,
    remote: Option<(String, bool)>,
    wants_data: bool,
    has_data: bool,
    anchors: u16,
}

impl Negotiation {
    pub(crate) fn data_negotiated(&self) -> bool {
        self.has_data
    }

    pub(crate) fn want_data(&mut self) {
        self.wants_data = true;
    }
}

/// Says whether a channel is there only for the sake of its section.
pub(crate) fn is_anchor(label: &str) -> bool {
    label == ANCHOR_LABEL
}

/// Whether a data channel's id is one of those that the anchors have.
pub(crate) fn is_anchor_stream(stream: u16) -> bool {
    (FIRST_ANCHOR..FIRST_ANCHOR + ANCHORS).contains(&stream)
}

impl Peer {
    /// The next anchor whose stream the remote has not opened, which str0m takes for a bug.
    fn free_anchor(&mut self) -> Result<u16, PeerError> {
        let first = self.negotiation.anchors;
        let is_free = |anchor: &u16| {
            self.rtc.direct_api().channel_id_by_sctp_stream_id(FIRST_ANCHOR + anchor).is_none()
        };
        let free = (0..ANCHORS).map(|ahead| (first + ahead) % ANCHORS).find(is_free);
        free.ok_or(PeerError::State("no data channel id is free"))
    }

    /// Where offer and answer stand.
    pub fn signaling_state(&self) -> SignalingState {
        if self.closed { SignalingState::Closed } else { self.negotiation.signaling }
    }

    /// Our description that holds, and whether it is an answer.
    pub fn local_description(&self) -> Option<(&str, bool)> {
        self.negotiation.local.as_ref().map(|(text, answer)| (text.as_str(), *answer))
    }

    /// Their description that holds, and whether it is an answer.
    pub fn remote_description(&self) -> Option<(&str, bool)> {
        self.negotiation.remote.as_ref().map(|(text, answer)| (text.as_str(), *answer))
    }

    /// Adds a section of its own in the next offer.
    pub fn add_transceiver(
        &mut self,
        media: MediaType,
        direction: Direction,
        track: Option<String>,
        stream: Option<String>,
    ) -> TransceiverId {
        let id = TransceiverId(self.new_id());
        let mut transceiver = Transceiver::new(id, media, direction);
        transceiver.track = track;
        transceiver.stream = stream;
        self.transceivers.push(transceiver);
        id
    }

    /// Sends a track on a transceiver of its kind that sends nothing yet, else on a new one.
    pub fn add_track(
        &mut self,
        media: MediaType,
        track: String,
        stream: Option<String>,
    ) -> TransceiverId {
        let free = self.transceivers.iter_mut().find(|t| {
            t.media == media
                && t.track.is_none()
                && t.mid.is_some()
                && t.direction == Direction::RecvOnly
                && t.current.is_none_or(|current| current != Direction::Inactive)
        });
        if let Some(transceiver) = free {
            transceiver.track = Some(track);
            transceiver.stream = stream;
            transceiver.direction = Direction::SendRecv;
            return transceiver.id;
        }
        let id = self.add_transceiver(media, Direction::SendRecv, Some(track), stream);
        if let Some(transceiver) = self.transceivers.iter_mut().find(|t| t.id == id) {
            transceiver.reusable = true;
        }
        id
    }

    /// Stops sending on a transceiver, from the next offer or answer on.
    pub fn remove_track(&mut self, id: TransceiverId) {
        if let Some(transceiver) = self.transceivers.iter_mut().find(|t| t.id == id) {
            transceiver.track = None;
            transceiver.reusable = false;
            transceiver.direction = Direction::from_parts(false, transceiver.direction.receives());
        }
    }

    /// Neither sends nor receives on a transceiver, from the next offer on.
    pub fn stop_transceiver(&mut self, id: TransceiverId) {
        if let Some(transceiver) = self.transceivers.iter_mut().find(|t| t.id == id) {
            transceiver.track = None;
            transceiver.reusable = false;
            transceiver.direction = Direction::Inactive;
        }
    }

    /// Writes an offer of what is wanted now. It holds once set as local description and
    /// answered; a later offer takes an unanswered one back.
    pub fn create_offer(&mut self, ice_restart: bool) -> Result<String, PeerError> {
        if self.closed {
            return Err(PeerError::State("the connection is closed"));
        }
        if self.negotiation.signaling == SignalingState::HaveRemoteOffer {
            return Err(PeerError::State("an offer of the remote waits for its answer"));
        }
        self.take_back();
        let add_data = self.negotiation.wants_data && !self.negotiation.has_data;
        let anchor = if add_data { self.free_anchor()? } else { 0 };
        let stopped: HashSet<Mid> = self
            .transceivers
            .iter()
            .filter_map(|t| t.mid)
            .filter(|mid| self.rtc.media(*mid).is_none_or(str0m::media::Media::disabled))
            .collect();
        let mut api = self.rtc.sdp_api();
        for transceiver in &mut self.transceivers {
            let direction = to_rtc(transceiver.direction);
            match transceiver.mid {
                Some(mid) if stopped.contains(&mid) => {}
                // An answer may have made the section inactive: what is wanted is said anew.
                Some(mid) => api.set_direction(mid, direction),
                None => {
                    let stream = transceiver.stream.clone().unwrap_or_else(|| "-".to_owned());
                    let mid = api.add_media(
                        transceiver.media.kind(),
                        direction,
                        Some(stream),
                        transceiver.track.clone(),
                        None,
                    );
                    transceiver.tentative = Some(mid);
                }
            }
        }
        if add_data {
            let stream = FIRST_ANCHOR + anchor;
            self.negotiation.anchors = (anchor + 1) % ANCHORS;
            api.add_channel_with_config(ChannelConfig {
                label: ANCHOR_LABEL.to_owned(),
                negotiated: Some(stream),
                ..ChannelConfig::default()
            });
        }
        if ice_restart {
            api.ice_restart(true);
            self.moved = false;
            // The new attempt has the time of any other, whatever was left of the old path's.
            self.fail_at = self.fail_at.map(|_| self.now + CONNECT_WITHIN);
        }
        if !api.has_changes() {
            // str0m makes no offer without a change: there and back is one.
            let known = self.transceivers.iter().find_map(|t| {
                t.mid.filter(|mid| !stopped.contains(mid)).map(|mid| (mid, to_rtc(t.direction)))
            });
            if let Some((mid, direction)) = known {
                let other = match direction {
                    RtcDirection::Inactive => RtcDirection::RecvOnly,
                    _ => RtcDirection::Inactive,
                };
                api.set_direction(mid, other);
                api.set_direction(mid, direction);
            }
        }
        let applied = api.apply();
        self.drain();
        if let Some((offer, pending)) = applied {
            self.negotiation.pending = Some(Pending::Changes(pending));
            return Ok(self.without_hidden(with_opus_first(&offer.to_sdp_string())));
        }
        let same = self.negotiation.local.as_ref().map(|(text, _)| text.clone());
        self.negotiation.pending = same.is_some().then_some(Pending::Unchanged);
        same.ok_or(PeerError::State("there is nothing to offer"))
    }

    /// Gives the answer to the offer that was set as remote description.
    pub fn create_answer(&mut self) -> Result<String, PeerError> {
        let Some(answer) = self.negotiation.answer.as_deref() else {
            return Err(PeerError::State("no offer waits for an answer"));
        };
        // str0m mirrors the offer; a section for which there is no track sends nothing.
        let transceivers = &self.transceivers;
        let known = sdp::sections(answer);
        Ok(sdp::with_directions(answer, |mid| {
            let section = known.iter().find(|section| section.mid == mid)?;
            let transceiver = transceivers.iter().find(|t| t.mid() == Some(mid.to_owned()))?;
            let sends = section.direction.sends() && transceiver.track.is_some();
            Some(Direction::from_parts(sends, section.direction.receives()))
        }))
    }

    /// Applies our offer, which may have been edited: its directions count.
    pub fn set_local_offer(&mut self, text: &str) -> Result<(), PeerError> {
        if self.negotiation.pending.is_none() {
            return Err(PeerError::State("there is no offer of ours to set"));
        }
        for section in sdp::sections(text) {
            let mid = Mid::from(section.mid.as_str());
            if self.by_mid(mid).is_some() {
                self.rtc.sdp_api().set_direction(mid, to_rtc(section.direction));
                self.drain();
            }
        }
        self.negotiation.pending_local = Some(text.to_owned());
        self.negotiation.signaling = SignalingState::HaveLocalOffer;
        Ok(())
    }

    /// Applies our answer.
    pub fn set_local_answer(&mut self, text: &str) -> Result<(), PeerError> {
        if self.negotiation.answer.take().is_none() {
            return Err(PeerError::State("no offer waits for an answer"));
        }
        for section in sdp::sections(text) {
            let mid = Mid::from(section.mid.as_str());
            if let Some(transceiver) = self.transceivers.iter_mut().find(|t| t.mid == Some(mid)) {
                transceiver.current = Some(section.direction);
            }
        }
        self.negotiation.local = Some((text.to_owned(), true));
        self.negotiation.remote = self.negotiation.pending_remote.take().map(|t| (t, false));
        self.negotiation.signaling = SignalingState::Stable;
        Ok(())
    }

    /// Takes an offer of ours back (`rollback`).
    pub fn rollback(&mut self) {
        self.take_back();
        if self.negotiation.signaling == SignalingState::HaveLocalOffer {
            self.negotiation.signaling = SignalingState::Stable;
        }
    }

    /// Applies the answer to our offer. The answer that holds already stands for a rollback: that
    /// is how livekit makes room for an ICE restart.
    pub fn set_remote_answer(&mut self, text: &str) -> Result<Vec<TrackChange>, PeerError> {
        if self.negotiation.signaling != SignalingState::HaveLocalOffer {
            return Err(PeerError::State("no offer of ours waits for an answer"));
        }
        if self.negotiation.remote.as_ref().is_some_and(|(held, answer)| *answer && held == text) {
            debug!("the answer that holds was set again: our offer is taken back");
            self.rollback();
            return Ok(Vec::new());
        }
        let answer = SdpAnswer::from_sdp_string(text).map_err(|e| PeerError::Sdp(e.to_string()))?;
        self.negotiation.signaling = SignalingState::Stable;
        match self.negotiation.pending.take() {
            Some(Pending::Changes(pending)) => {
                let accepted = self.rtc.sdp_api().accept_answer(pending, answer);
                self.drain();
                if let Err(error) = accepted {
                    self.take_back();
                    return Err(PeerError::Sdp(error.to_string()));
                }
            }
            Some(Pending::Unchanged) | None => {}
        }
        for transceiver in &mut self.transceivers {
            if let Some(mid) = transceiver.tentative.take() {
                transceiver.mid = Some(mid);
            }
        }
        self.negotiation.local = self.negotiation.pending_local.take().map(|t| (t, false));
        self.negotiation.remote = Some((text.to_owned(), true));
        let changes = self.apply_remote(&sdp::sections(text), false);
        self.apply_formats(text);
        self.start_data(text);
        self.hasten_checks();
        Ok(changes)
    }

    /// Applies an offer of the remote. One of ours that is out is taken back.
    pub fn set_remote_offer(&mut self, text: &str) -> Result<Vec<TrackChange>, PeerError> {
        if self.closed {
            return Err(PeerError::State("the connection is closed"));
        }
        let offer = SdpOffer::from_sdp_string(text).map_err(|e| PeerError::Sdp(e.to_string()))?;
        self.take_back();
        self.moved = false;
        let accepted = self.rtc.sdp_api().accept_offer(offer);
        self.drain();
        let answer = accepted.map_err(|e| PeerError::Sdp(e.to_string()))?;
        self.negotiation.answer = Some(self.without_hidden(answer.to_sdp_string()));
        self.negotiation.pending_remote = Some(text.to_owned());
        self.negotiation.signaling = SignalingState::HaveRemoteOffer;
        let changes = self.apply_remote(&sdp::sections(text), true);
        self.apply_formats(text);
        self.start_data(text);
        Ok(changes)
    }

    /// Forgets an offer of ours that is not answered. str0m has changed nothing for it.
    fn take_back(&mut self) {
        self.negotiation.pending = None;
        self.negotiation.pending_local = None;
        for transceiver in &mut self.transceivers {
            transceiver.tentative = None;
        }
    }

    fn start_data(&mut self, text: &str) {
        let data = sdp::sections(text)
            .iter()
            .any(|section| section.kind == Kind::Application && !section.rejected);
        if data {
            self.negotiation.has_data = true;
            self.open_waiting_channels();
        } else if self.negotiation.wants_data && !self.negotiation.has_data {
            debug!("the remote has no data channels yet");
        }
    }

    fn apply_remote(&mut self, sections: &[Section], is_offer: bool) -> Vec<TrackChange> {
        let mut changes = Vec::new();
        self.routes.clear();
        for section in sections {
            let media = match section.kind {
                Kind::Audio => MediaType::Audio,
                Kind::Video => MediaType::Video,
                Kind::Application | Kind::Other => continue,
            };
            let mid = Mid::from(section.mid.as_str());
            let index = match self.by_mid(mid) {
                Some(index) => index,
                None if is_offer => self.associate(media, mid),
                None => {
                    warn!(mid = section.mid, "the answer has a section that was not offered");
                    continue;
                }
            };
            let Some(transceiver) = self.transceivers.get_mut(index) else { continue };
            transceiver.payload_types = None;
            if !is_offer {
                transceiver.current = Some(Direction::from_parts(
                    section.direction.receives(),
                    section.direction.sends(),
                ));
            }
            let sends = section.direction.sends() && !section.rejected;
            let streams = if sends { section.streams.clone() } else { Vec::new() };
            let before = mem::replace(&mut transceiver.remote_sends, sends);
            let other = transceiver.remote_streams != streams;
            transceiver.remote_streams.clone_from(&streams);
            if before && (!sends || other) {
                changes.push(TrackChange::Ended { id: transceiver.id });
            }
            if sends && (!before || other) {
                changes.push(TrackChange::Started { id: transceiver.id, streams });
            }
        }
        changes
    }

    /// Takes over what the remote asks of our encoder.
    fn apply_formats(&mut self, text: &str) {
        for (mid, format) in opus_formats(text) {
            let mid = Mid::from(mid);
            if let Some(transceiver) = self.transceivers.iter_mut().find(|t| t.mid == Some(mid)) {
                if transceiver.opus != Some(format) {
                    debug!(%mid, ?format, "what the remote asks of our encoder");
                }
                transceiver.opus = Some(format);
            }
        }
    }

    /// Finds or makes the transceiver for a section that the remote offers.
    fn associate(&mut self, media: MediaType, mid: Mid) -> usize {
        let waiting = self
            .transceivers
            .iter()
            .position(|t| t.mid.is_none() && t.reusable && t.media == media);
        let index = waiting.unwrap_or_else(|| {
            let id = TransceiverId(self.new_id());
            self.transceivers.push(Transceiver::new(id, media, Direction::RecvOnly));
            self.transceivers.len() - 1
        });
        if let Some(transceiver) = self.transceivers.get_mut(index) {
            transceiver.mid = Some(mid);
        }
        index
    }
}

fn to_rtc(direction: Direction) -> RtcDirection {
    match direction {
        Direction::SendRecv => RtcDirection::SendRecv,
        Direction::SendOnly => RtcDirection::SendOnly,
        Direction::RecvOnly => RtcDirection::RecvOnly,
        Direction::Inactive => RtcDirection::Inactive,
    }
}
