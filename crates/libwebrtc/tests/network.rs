//! A host whose addresses change under a call, and a STUN server that sees another address.
//!
//! The addresses are those of the loopback network, of which every one can be bound. They hold for
//! the process, so one test runs at a time.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failure in a helper fails the test that calls it"
)]

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use libwebrtc::peer_connection::IceCandidateError;
use libwebrtc::prelude::*;
use libwebrtc::testing;
use tokio::sync::Mutex;
use tokio::sync::mpsc::{self, Receiver};
use tokio::time::timeout;

const BOUND: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(20);

static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

fn set_addresses(addresses: &[&str]) {
    let ips = addresses.iter().map(|address| address.parse::<IpAddr>().unwrap()).collect();
    testing::set_addresses(ips, LOOK_EVERY);
}

struct Side {
    connection: PeerConnection,
    candidates: Receiver<IceCandidate>,
    errors: Receiver<IceCandidateError>,
    channels: Receiver<DataChannel>,
    states: Receiver<PeerConnectionState>,
    gathering: Receiver<IceGatheringState>,
}

fn side(config: RtcConfiguration) -> Side {
    let connection = PeerConnectionFactory::default().create_peer_connection(config).unwrap();
    let (candidate_tx, candidates) = mpsc::channel(32);
    let (error_tx, errors) = mpsc::channel(8);
    let (channel_tx, channels) = mpsc::channel(8);
    let (state_tx, states) = mpsc::channel(32);
    let (gathering_tx, gathering) = mpsc::channel(32);
    connection.on_connection_state_change(Some(Box::new(move |state| {
        // Nobody listens any more when a test has ended.
        let _ = state_tx.try_send(state);
    })));
    connection.on_ice_gathering_state_change(Some(Box::new(move |state| {
        let _ = gathering_tx.try_send(state);
    })));
    connection.on_ice_candidate(Some(Box::new(move |candidate| {
        candidate_tx.try_send(candidate).unwrap();
    })));
    connection.on_ice_candidate_error(Some(Box::new(move |error| {
        error_tx.try_send(error).unwrap();
    })));
    connection.on_data_channel(Some(Box::new(move |channel| {
        channel_tx.try_send(channel).unwrap();
    })));
    Side { connection, candidates, errors, channels, states, gathering }
}

async fn next<T>(receiver: &mut Receiver<T>) -> T {
    timeout(BOUND, receiver.recv()).await.expect("in time").expect("not closed")
}

async fn negotiate(from: &PeerConnection, to: &PeerConnection, ice_restart: bool) -> String {
    let options = OfferOptions { ice_restart, ..OfferOptions::default() };
    let offer = from.create_offer(options).await.unwrap();
    from.set_local_description(offer.clone()).await.unwrap();
    to.set_remote_description(offer.clone()).await.unwrap();
    let answer = to.create_answer(AnswerOptions::default()).await.unwrap();
    to.set_local_description(answer.clone()).await.unwrap();
    from.set_remote_description(answer).await.unwrap();
    offer.to_string()
}

/// Waits for a candidate of ours, and tells the other side of it and of those before.
async fn trickle_until(
    candidates: &mut Receiver<IceCandidate>,
    to: &PeerConnection,
    wanted: impl Fn(&str) -> bool,
) -> String {
    loop {
        let candidate = next(candidates).await;
        let text = candidate.candidate();
        to.add_ice_candidate(candidate).await.unwrap();
        if wanted(&text) {
            return text;
        }
    }
}

async fn goes_through(channel: &DataChannel, at_bob: &mut Receiver<Vec<u8>>, text: &str) {
    channel.send(text.as_bytes(), true).unwrap();
    assert_eq!(next(at_bob).await, text.as_bytes());
}

#[tokio::test]
async fn a_call_moves_to_the_address_that_a_host_got_instead_of_its_old_one() {
    let _turn = ONE_AT_A_TIME.lock().await;
    set_addresses(&["127.0.0.2"]);
    let (mut alice, mut bob) =
        (side(RtcConfiguration::default()), side(RtcConfiguration::default()));
    let channel = alice.connection.create_data_channel("chat", DataChannelInit::default()).unwrap();
    let (open_tx, mut open) = mpsc::channel(8);
    channel.on_state_change(Some(Box::new(move |state| open_tx.try_send(state).unwrap())));
    let offer = negotiate(&alice.connection, &bob.connection, false).await;
    assert!(offer.contains(" 127.0.0.2 ") && !offer.contains(" 127.0.0.1 "), "{offer}");
    let theirs = next(&mut bob.channels).await;
    let (tx, mut at_bob) = mpsc::channel(8);
    theirs.on_message(Some(Box::new(move |m| tx.try_send(m.data.to_vec()).unwrap())));
    assert_eq!(next(&mut open).await, DataChannelState::Open);
    goes_through(&channel, &mut at_bob, "before").await;

    // A further address is told of by itself.
    set_addresses(&["127.0.0.2", "127.0.0.3"]);
    let is_new = |text: &str| text.contains("udp") && text.contains(" 127.0.0.3 ");
    trickle_until(&mut alice.candidates, &bob.connection, is_new).await;
    trickle_until(&mut bob.candidates, &alice.connection, is_new).await;
    goes_through(&channel, &mut at_bob, "between").await;

    // The first one goes on both sides, which neither can tell the other: after a restart, as
    // livekit does it, the call goes on by the second.
    set_addresses(&["127.0.0.3"]);
    for side in [&mut alice, &mut bob] {
        while next(&mut side.states).await != PeerConnectionState::Disconnected {}
    }
    let offer = negotiate(&alice.connection, &bob.connection, true).await;
    assert!(!offer.contains(" 127.0.0.2 "), "{offer}");
    goes_through(&channel, &mut at_bob, "after").await;
}

/// A STUN server that tells everyone this address (RFC 8489 §14.2), once.
fn stun_server(mapped: SocketAddr) -> SocketAddr {
    const COOKIE: u32 = 0x2112_A442;
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let SocketAddr::V4(mapped) = mapped else { panic!("IPv4") };
    thread::spawn(move || {
        let mut request = [0; 100];
        let (_, client) = socket.recv_from(&mut request).unwrap();
        let mut answer = vec![0x01, 0x01, 0, 12];
        answer.extend_from_slice(&request[4..20]);
        answer.extend_from_slice(&[0, 0x20, 0, 8, 0, 1]);
        answer.extend_from_slice(&(mapped.port() ^ (COOKIE >> 16) as u16).to_be_bytes());
        answer.extend_from_slice(&(u32::from(*mapped.ip()) ^ COOKIE).to_be_bytes());
        socket.send_to(&answer, client).unwrap();
    });
    address
}

#[tokio::test]
async fn the_address_that_a_stun_server_sees_becomes_a_candidate() {
    let _turn = ONE_AT_A_TIME.lock().await;
    set_addresses(&["127.0.0.2"]);
    let server = stun_server("203.0.113.9:4242".parse().unwrap());
    let mut config = RtcConfiguration::default();
    config.ice_servers.push(IceServer {
        urls: vec![format!("stun:{server}"), "stuns:127.0.0.1".to_owned()],
        username: String::new(),
        password: String::new(),
    });
    let mut side = side(config);
    side.connection.create_data_channel("x", DataChannelInit::default()).unwrap();
    let offer = side.connection.create_offer(OfferOptions::default()).await.unwrap();
    side.connection.set_local_description(offer).await.unwrap();
    loop {
        let candidate = next(&mut side.candidates).await.candidate();
        if candidate.contains(" typ srflx ") {
            assert!(candidate.contains(" 203.0.113.9 4242 "), "{candidate}");
            assert!(!candidate.contains("127.0.0.2"), "the base is nobody's business: {candidate}");
            break;
        }
    }
    let error = next(&mut side.errors).await;
    assert_eq!((error.url.as_str(), error.error_code), ("stuns:127.0.0.1", 400));
    while next(&mut side.gathering).await != IceGatheringState::Complete {}
}

#[tokio::test]
async fn ipv6_loopback_is_bound_when_the_remote_is_there() {
    let _turn = ONE_AT_A_TIME.lock().await;
    set_addresses(&["127.0.0.2"]);
    let mut side = side(RtcConfiguration::default());
    side.connection.create_data_channel("x", DataChannelInit::default()).unwrap();
    let offer = side.connection.create_offer(OfferOptions::default()).await.unwrap();
    assert!(!offer.to_string().contains(" ::1 "));
    side.connection.set_local_description(offer).await.unwrap();
    let theirs = "candidate:1 1 udp 2113929471 ::1 9999 typ host";
    let theirs = IceCandidate::parse("0", 0, theirs).unwrap();
    side.connection.add_ice_candidate(theirs).await.unwrap();
    if UdpSocket::bind("[::1]:0").is_ok() {
        while !next(&mut side.candidates).await.candidate().contains(" ::1 ") {}
    }
    // A host without IPv6 takes the candidate, and goes on without it.
    side.connection.create_offer(OfferOptions::default()).await.unwrap();
}
