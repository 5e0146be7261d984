//! A peer of ours or a bare str0m at either end of a perfect link, in virtual time.

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each test uses its part, and a failure in a helper fails the test that calls it"
)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rtc_audio::peer::{Event, Peer, PeerState};
use rtc_audio::sdp::Direction;
use rtc_audio::transceiver::{MediaType, TransceiverId};
use str0m::change::{SdpAnswer, SdpOffer, SdpPendingOffer};
use str0m::media::{Direction as RtcDirection, MediaKind, Mid};
use str0m::net::{Protocol, Receive, Transmit};
use str0m::rtp::RtpPacket;
use str0m::{Candidate, Input, Output, Rtc, RtcConfig};

/// One end.
pub trait End {
    fn offer(&mut self) -> String;
    fn answer(&mut self, offer: &str) -> String;
    fn answered(&mut self, answer: &str);
    fn transmit(&mut self) -> Option<Transmit>;
    fn receive(&mut self, now: Instant, transmit: &Transmit);
    fn due(&self) -> Option<Instant>;
    fn timeout(&mut self, now: Instant);
    fn is_up(&self) -> bool;
}

/// A peer that sends or receives one track.
pub struct Ours {
    pub peer: Peer,
    pub id: Option<TransceiverId>,
    pub heard: usize,
}

impl Ours {
    pub fn new(now: Instant, port: u16, sends: bool) -> Self {
        let mut peer = Peer::new(now);
        peer.add_local_address(SocketAddr::from(([10, 0, 0, 1], port)));
        let (track, stream) = (Some("track".to_owned()), Some("stream".to_owned()));
        let id = sends
            .then(|| peer.add_transceiver(MediaType::Audio, Direction::SendOnly, track, stream));
        Self { peer, id, heard: 0 }
    }
}

impl End for Ours {
    fn offer(&mut self) -> String {
        let offer = self.peer.create_offer(false).unwrap();
        self.peer.set_local_offer(&offer).unwrap();
        offer
    }

    fn answer(&mut self, offer: &str) -> String {
        self.peer.set_remote_offer(offer).unwrap();
        let answer = self.peer.create_answer().unwrap();
        self.peer.set_local_answer(&answer).unwrap();
        answer
    }

    fn answered(&mut self, answer: &str) {
        self.peer.set_remote_answer(answer).unwrap();
    }

    fn transmit(&mut self) -> Option<Transmit> {
        while let Some(event) = self.peer.poll_event() {
            self.heard += usize::from(matches!(event, Event::Audio(..)));
        }
        self.peer.poll_transmit()
    }

    fn receive(&mut self, now: Instant, d: &Transmit) {
        self.peer.handle_datagram(now, d.proto, d.source, d.destination, &d.contents);
    }

    fn due(&self) -> Option<Instant> {
        self.peer.poll_timeout()
    }

    fn timeout(&mut self, now: Instant) {
        self.peer.handle_timeout(now);
    }

    fn is_up(&self) -> bool {
        self.peer.state() == PeerState::Connected
    }
}

/// str0m alone, set up as a peer of ours sets it up.
pub struct Bare {
    pub rtc: Rtc,
    pub mid: Option<Mid>,
    sends: bool,
    pending: Option<SdpPendingOffer>,
    due: Option<Instant>,
    pub last: Option<RtpPacket>,
    pub heard: usize,
}

impl Bare {
    pub fn new(now: Instant, port: u16, sends: bool, red: bool) -> Self {
        let mut rtc = RtcConfig::new()
            .set_rtp_mode(true)
            .clear_codecs()
            .enable_opus(true, red)
            .enable_vp8(true)
            .enable_vp9(true)
            .enable_h264(true)
            .enable_av1(true)
            .set_stats_interval(Some(Duration::from_secs(1)))
            .build(now);
        let address = SocketAddr::from(([10, 0, 0, 1], port));
        rtc.add_local_candidate(Candidate::host(address, Protocol::Udp).unwrap());
        rtc.handle_input(Input::Timeout(now)).unwrap();
        Self { rtc, mid: None, sends, pending: None, due: Some(now), last: None, heard: 0 }
    }
}

impl End for Bare {
    fn offer(&mut self) -> String {
        let mut api = self.rtc.sdp_api();
        if self.sends {
            self.mid = Some(api.add_media(
                MediaKind::Audio,
                RtcDirection::SendOnly,
                Some("stream".to_owned()),
                Some("track".to_owned()),
                None,
            ));
        }
        let (offer, pending) = api.apply().unwrap();
        self.pending = Some(pending);
        offer.to_sdp_string()
    }

    fn answer(&mut self, offer: &str) -> String {
        let offer = SdpOffer::from_sdp_string(offer).unwrap();
        self.rtc.sdp_api().accept_offer(offer).unwrap().to_sdp_string()
    }

    fn answered(&mut self, answer: &str) {
        let answer = SdpAnswer::from_sdp_string(answer).unwrap();
        let pending = self.pending.take().unwrap();
        self.rtc.sdp_api().accept_answer(pending, answer).unwrap();
    }

    fn transmit(&mut self) -> Option<Transmit> {
        loop {
            match self.rtc.poll_output().unwrap() {
                Output::Timeout(at) => {
                    self.due = Some(at);
                    return None;
                }
                Output::Transmit(transmit) => return Some(transmit),
                Output::Event(str0m::Event::RtpPacket(packet)) => {
                    self.heard += 1;
                    self.last = Some(packet);
                }
                Output::Event(_) => {}
            }
        }
    }

    fn receive(&mut self, now: Instant, d: &Transmit) {
        let receive = Receive::new(d.proto, d.source, d.destination, &d.contents).unwrap();
        self.rtc.handle_input(Input::Receive(now, receive)).unwrap();
    }

    fn due(&self) -> Option<Instant> {
        self.due
    }

    fn timeout(&mut self, now: Instant) {
        self.rtc.handle_input(Input::Timeout(now)).unwrap();
    }

    fn is_up(&self) -> bool {
        self.rtc.is_connected()
    }
}

/// Two ends and the time.
pub struct Pair<A, B> {
    pub a: A,
    pub b: B,
    pub now: Instant,
}

pub fn base() -> Instant {
    #[allow(clippy::disallowed_methods, reason = "an arbitrary origin of virtual time")]
    Instant::now()
}

impl<A: End, B: End> Pair<A, B> {
    /// Connects them; `edit` may change the answer that the offering end sees.
    pub fn connect(a: A, b: B, now: Instant, edit: impl Fn(&str) -> String) -> Self {
        let mut pair = Self { a, b, now };
        let offer = pair.a.offer();
        let answer = pair.b.answer(&offer);
        pair.a.answered(&edit(&answer));
        for _ in 0..10_000 {
            if pair.a.is_up() && pair.b.is_up() {
                return pair;
            }
            pair.step(Duration::from_millis(1));
        }
        panic!("no connection within 10 s of virtual time");
    }

    /// Lets time pass and everything be delivered.
    pub fn step(&mut self, time: Duration) {
        self.now += time;
        if self.a.due().is_some_and(|at| at <= self.now) {
            self.a.timeout(self.now);
        }
        if self.b.due().is_some_and(|at| at <= self.now) {
            self.b.timeout(self.now);
        }
        self.deliver();
    }

    pub fn deliver(&mut self) {
        loop {
            let mut quiet = true;
            while let Some(transmit) = self.a.transmit() {
                self.b.receive(self.now, &transmit);
                quiet = false;
            }
            while let Some(transmit) = self.b.transmit() {
                self.a.receive(self.now, &transmit);
                quiet = false;
            }
            if quiet {
                return;
            }
        }
    }
}
