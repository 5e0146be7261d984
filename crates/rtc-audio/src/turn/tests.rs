use std::collections::HashMap;

use turn_client_proto::types::transmit::TransmitBuild as ServerMessage;
use turn_server_proto::api::{TurnServerApi, TurnServerPollRet};
use turn_server_proto::server::TurnServer;

use super::*;

const PEER: &str = "192.0.2.50:4000";
const RELAYED: &str = "203.0.113.1:50000";

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A relay and a real server's state machine, with no time between them.
struct Lab {
    relay: Relay,
    server: TurnServer,
    start: Instant,
    now: Instant,
    stream: bool,
    /// What the server sent on to peers.
    relayed: Vec<(SocketAddr, Vec<u8>)>,
    events: Vec<RelayEvent>,
    /// Whether the server hears anything.
    online: bool,
}

impl Lab {
    fn new(stream: bool, password: &str) -> Self {
        #[allow(clippy::disallowed_methods, reason = "an arbitrary origin of virtual time")]
        let start = Instant::now();
        let (local, listen) = (address("10.0.0.1:5000"), address("203.0.113.1:3478"));
        let transport = if stream { TransportType::Tcp } else { TransportType::Udp };
        let mut server = TurnServer::new(transport, listen, "here".to_owned());
        server.add_user("anna".to_owned(), "secret".to_owned());
        let config = RelayConfig {
            local,
            server: listen,
            stream,
            ipv6: false,
            username: "anna".to_owned(),
            password: password.to_owned(),
        };
        Self {
            relay: Relay::new(start, config),
            server,
            start,
            now: start,
            stream,
            relayed: Vec::new(),
            events: Vec::new(),
            online: true,
        }
    }

    fn time(&self) -> Time {
        Time::from_nanos((self.now - self.start).as_nanos() as i64)
    }

    fn carry(&mut self, to: SocketAddr, mut data: Vec<u8>) {
        if to == self.relay.config.local {
            if self.stream {
                let (len, _) = frame(&data).unwrap().unwrap();
                data.truncate(len);
            }
            self.relay.handle_message(self.now, &data);
        } else {
            self.relayed.push((to, data));
        }
    }

    /// Carries messages to and fro until nobody has any more to say.
    fn settle(&mut self) {
        for _ in 0..100 {
            let mut quiet = true;
            let time = self.time();
            while let Some(data) = self.relay.poll_transmit() {
                quiet = false;
                let config = self.relay.config.clone();
                assert!(!self.stream || data.len().is_multiple_of(4), "no padding on a stream");
                if self.online {
                    let transport = self.server.transport();
                    let message = Transmit::new(data, transport, config.local, config.server);
                    if let Some(answer) = self.server.recv(message, time) {
                        let answer = ServerMessage::build(answer);
                        self.carry(answer.to, answer.data);
                    }
                }
            }
            if let TurnServerPollRet::AllocateSocket {
                transport,
                listen_addr,
                client_addr,
                allocation_transport,
                family,
            } = self.server.poll(time)
            {
                quiet = false;
                self.server.allocated_socket(
                    transport,
                    listen_addr,
                    client_addr,
                    allocation_transport,
                    family,
                    Ok(address(RELAYED)),
                    time,
                );
            }
            while let Some(answer) = self.server.poll_transmit(time) {
                quiet = false;
                self.carry(answer.to, answer.data);
            }
            while let Some(event) = self.relay.poll_event() {
                self.events.push(event);
            }
            if quiet {
                return;
            }
        }
        panic!("they never settle");
    }

    /// Lets time pass, each deadline in its turn.
    fn pass(&mut self, duration: Duration) {
        let end = self.now + duration;
        self.settle();
        while let Some(at) = self.relay.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.relay.handle_timeout(self.now);
            self.settle();
        }
        self.now = end;
    }

    fn peer_sends(&mut self, data: &[u8]) -> Option<(SocketAddr, Vec<u8>)> {
        let message =
            Transmit::new(data.to_vec(), TransportType::Udp, address(PEER), address(RELAYED));
        let time = self.time();
        let forwarded = ServerMessage::build(self.server.recv(message, time)?);
        let mut data = forwarded.data;
        if self.stream {
            let (len, _) = frame(&data).unwrap().unwrap();
            data.truncate(len);
        }
        self.relay.handle_message(self.now, &data)
    }
}

#[test]
fn an_allocation_relays_both_ways_over_datagrams_and_streams() {
    for stream in [false, true] {
        let mut lab = Lab::new(stream, "secret");
        lab.pass(Duration::from_secs(1));
        assert_eq!(lab.events, [RelayEvent::Allocated(address(RELAYED))]);
        assert_eq!(lab.peer_sends(b"nobody asked for this"), None);

        // The first datagram waits for the permission, none is lost.
        lab.relay.send(lab.now, address(PEER), &[0, 1, 2]);
        lab.relay.send(lab.now, address(PEER), &[0, 1, 3]);
        lab.pass(Duration::from_secs(1));
        let expected = [(address(PEER), vec![0, 1, 2]), (address(PEER), vec![0, 1, 3])];
        assert_eq!(lab.relayed, expected);
        assert_eq!(lab.peer_sends(b"pong!"), Some((address(PEER), b"pong!".to_vec())));

        // What is no check makes a channel: four bytes more instead of a STUN message.
        lab.relay.send(lab.now, address(PEER), &[0x80; 99]);
        lab.pass(Duration::from_secs(1));
        lab.relay.send(lab.now, address(PEER), &[0x80; 99]);
        let message = lab.relay.poll_transmit().unwrap();
        assert_eq!(message.len(), if stream { 104 } else { 103 });
        assert_eq!(lab.peer_sends(b"pong!"), Some((address(PEER), b"pong!".to_vec())));
    }
}

#[test]
fn allocation_permission_and_channel_outlive_an_hour() {
    let mut lab = Lab::new(false, "secret");
    lab.pass(Duration::from_secs(1));
    lab.relay.send(lab.now, address(PEER), &[0x80, 1]);
    for minute in 0..60 {
        lab.pass(Duration::from_mins(1));
        lab.relayed.clear();
        lab.relay.send(lab.now, address(PEER), &[0x80, minute]);
        lab.settle();
        assert_eq!(lab.relayed, [(address(PEER), vec![0x80, minute])], "minute {minute}");
        assert!(lab.peer_sends(&[0x80]).is_some(), "minute {minute}");
    }
    assert_eq!(lab.events.len(), 1);
}

#[test]
fn closing_gives_the_address_back() {
    let mut lab = Lab::new(false, "secret");
    lab.pass(Duration::from_secs(1));
    lab.relay.send(lab.now, address(PEER), &[0x80, 1]);
    lab.pass(Duration::from_secs(1));
    assert!(lab.peer_sends(&[0x80]).is_some());
    lab.relay.close(lab.now);
    lab.pass(Duration::from_secs(1));
    assert_eq!(lab.events.last(), Some(&RelayEvent::Gone));
    assert_eq!(lab.peer_sends(&[0x80]), None);
    assert_eq!(lab.relay.poll_timeout(), None);
}

#[test]
fn a_wrong_password_fails_at_once_and_shows_nowhere() {
    let mut lab = Lab::new(false, "s3cr3t-guess");
    lab.pass(Duration::from_secs(1));
    let [RelayEvent::Failed { code, text }] = lab.events.as_slice() else {
        panic!("{:?}", lab.events);
    };
    assert_eq!(*code, 401);
    assert!(!text.contains("s3cr3t") && !format!("{:?}", lab.relay).contains("s3cr3t"));
}

#[test]
fn a_silent_server_fails_in_ten_seconds() {
    let mut lab = Lab::new(false, "secret");
    lab.online = false;
    lab.pass(Duration::from_millis(9_900));
    assert_eq!(lab.events, []);
    lab.pass(Duration::from_millis(200));
    assert!(matches!(lab.events[..], [RelayEvent::Failed { code: UNREACHABLE, .. }]));
}

#[test]
fn a_server_that_is_gone_ends_the_allocation() {
    let mut lab = Lab::new(false, "secret");
    lab.pass(Duration::from_secs(1));
    lab.online = false;
    lab.pass(Duration::from_hours(1));
    assert_eq!(lab.events.last(), Some(&RelayEvent::Gone));
}

#[test]
fn what_waits_for_a_permission_is_bounded() {
    let mut lab = Lab::new(false, "secret");
    lab.pass(Duration::from_secs(1));
    for i in 0..2 * WAITING {
        lab.relay.send(lab.now, address(PEER), &[0, i as u8]);
    }
    lab.pass(Duration::from_secs(1));
    let mut per_peer: HashMap<SocketAddr, usize> = HashMap::new();
    for (peer, _) in &lab.relayed {
        *per_peer.entry(*peer).or_default() += 1;
    }
    assert_eq!(per_peer.get(&address(PEER)), Some(&WAITING));
}

#[test]
fn messages_are_cut_out_of_a_stream() {
    assert_eq!(frame(&[0, 1, 0]), Ok(None));
    assert_eq!(frame(&[0, 1, 0, 8]), Ok(Some((28, 28))));
    assert_eq!(frame(&[0x40, 1, 0, 5]), Ok(Some((9, 12))));
    assert_eq!(frame(b"HTTP"), Ok(Some((4 + 0x5450, 4 + 0x5450))));
    assert_eq!(frame(&[0x80, 1, 0, 0]), Err(NoFrame));
    assert_eq!(frame(&[0, 1, 0, 7]), Err(NoFrame));
}

proptest::proptest! {
    #[test]
    fn no_message_makes_it_panic(messages in proptest::collection::vec(
        proptest::collection::vec(proptest::num::u8::ANY, 0..200), 0..20,
    )) {
        for stream in [false, true] {
            let mut lab = Lab::new(stream, "secret");
            lab.pass(Duration::from_secs(1));
            lab.relay.send(lab.now, address(PEER), &[0x80]);
            lab.pass(Duration::from_secs(1));
            for message in &messages {
                let _ = lab.relay.handle_message(lab.now, message);
                let _ = frame(message);
            }
        }
    }
}
