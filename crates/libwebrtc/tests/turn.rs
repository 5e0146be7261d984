//! Two peer connections that reach each other by a TURN server alone: a real one, coturn.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failure in a helper fails the test that calls it"
)]

use std::f64::consts::TAU;
use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use libwebrtc::audio_source::native::NativeAudioSource;
use libwebrtc::audio_stream::native::NativeAudioStream;
use libwebrtc::peer_connection::IceCandidateError;
use libwebrtc::peer_connection_factory::native::PeerConnectionFactoryExt;
use libwebrtc::prelude::*;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::sync::Mutex;
use tokio::sync::mpsc::{self, Receiver};
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt;

const BOUND: Duration = Duration::from_secs(20);
const RATE: u32 = 48_000;
/// Sound is a matter of real time: one call at a time has the machine.
static ONE_CALL: Mutex<()> = Mutex::const_new(());
const USER: &str = "anna";
const PASSWORD: &str = "s3cr3t-of-anna";

/// coturn on loopback, with a certificate of an authority of its own. Ends with this.
struct Turn {
    server: Child,
    port: u16,
    tls_port: u16,
    authority: Vec<u8>,
    folder: TempDir,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// A port that is free for datagrams and streams alike.
fn free_port() -> u16 {
    for _ in 0..50 {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = tcp.local_addr().unwrap().port();
        if UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port");
}

/// Writes certificate and key for `localhost`; gives the authority's certificate.
fn write_certificate(folder: &Path) -> Vec<u8> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &authority).unwrap();
    fs::write(folder.join("cert.pem"), certificate.pem()).unwrap();
    fs::write(folder.join("key.pem"), key.serialize_pem()).unwrap();
    authority.der().to_vec()
}

/// Runs coturn as configured there.
fn run(folder: &Path) -> Child {
    Command::new("turnserver")
        .arg("-c")
        .arg(folder.join("conf"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| {
            assert_ne!(
                error.kind(),
                ErrorKind::NotFound,
                "this test needs the TURN server coturn: on Debian or Ubuntu run \
                 `sudo apt-get install coturn`, or `cargo xtask tools`"
            );
            panic!("turnserver does not start: {error}");
        })
}

impl Turn {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = write_certificate(folder.path());
        let (port, tls_port) = (free_port(), free_port());
        let path = |name: &str| folder.path().join(name).display().to_string();
        let config = format!(
            "listening-ip=127.0.0.1\nrelay-ip=127.0.0.1\nlistening-port={port}\n\
             tls-listening-port={tls_port}\ncert={}\npkey={}\nuserdb={}\npidfile={}\n\
             log-file={}\nsimple-log\nrealm=here\nlt-cred-mech\nfingerprint\n\
             user={USER}:{PASSWORD}\nallow-loopback-peers\nno-cli\nno-dtls\nverbose\n",
            path("cert.pem"),
            path("key.pem"),
            path("users"),
            path("pid"),
            path("log"),
        );
        fs::write(folder.path().join("conf"), config).unwrap();
        let server = run(folder.path());
        let turn = Self { server, port, tls_port, authority, folder };
        turn.wait_until_up().await;
        turn
    }

    async fn wait_until_up(&self) {
        let up = async {
            while tokio::net::TcpStream::connect(("127.0.0.1", self.tls_port)).await.is_err()
                || tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.is_err()
            {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(BOUND, up).await.expect("coturn listens in time");
    }

    /// Ends it, and starts another that knows of no allocation, on the same ports.
    async fn restart(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        self.server = run(self.folder.path());
        self.wait_until_up().await;
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    async fn wait_for_log(&self, text: &str, times: usize) {
        let seen = async {
            while self.log().matches(text).count() < times {
                sleep(Duration::from_millis(50)).await;
            }
        };
        let seen = timeout(BOUND, seen).await;
        assert!(seen.is_ok(), "no {text:?} in coturn's log:\n{}", self.log());
    }
}

struct Side {
    connection: PeerConnection,
    candidates: Receiver<IceCandidate>,
    errors: Receiver<IceCandidateError>,
    tracks: Receiver<RtcAudioTrack>,
    states: Receiver<PeerConnectionState>,
}

fn config(urls: &[String], password: &str, transports: IceTransportsType) -> RtcConfiguration {
    let mut config = RtcConfiguration::default();
    config.ice_transport_type = transports;
    config.ice_servers.push(IceServer {
        urls: urls.to_vec(),
        username: USER.to_owned(),
        password: password.to_owned(),
    });
    config
}

fn side(factory: &PeerConnectionFactory, config: RtcConfiguration) -> Side {
    let connection = factory.create_peer_connection(config).unwrap();
    let (candidate_tx, candidates) = mpsc::channel(32);
    let (error_tx, errors) = mpsc::channel(8);
    let (track_tx, tracks) = mpsc::channel(8);
    let (state_tx, states) = mpsc::channel(16);
    connection.on_connection_state_change(Some(Box::new(move |state| {
        // Nobody listens any more when a test has ended.
        let _ = state_tx.try_send(state);
    })));
    connection.on_ice_candidate(Some(Box::new(move |candidate| {
        candidate_tx.try_send(candidate).unwrap();
    })));
    connection.on_ice_candidate_error(Some(Box::new(move |error| {
        error_tx.try_send(error).unwrap();
    })));
    connection.on_track(Some(Box::new(move |event| {
        if let MediaStreamTrack::Audio(track) = event.track {
            track_tx.try_send(track).unwrap();
        }
    })));
    Side { connection, candidates, errors, tracks, states }
}

async fn next<T>(receiver: &mut Receiver<T>) -> T {
    timeout(BOUND, receiver.recv()).await.expect("in time").expect("not closed")
}

async fn negotiate(from: &PeerConnection, to: &PeerConnection) -> (String, String) {
    negotiate_with(from, to, OfferOptions::default()).await
}

async fn negotiate_with(
    from: &PeerConnection,
    to: &PeerConnection,
    options: OfferOptions,
) -> (String, String) {
    let offer = from.create_offer(options).await.unwrap();
    from.set_local_description(offer.clone()).await.unwrap();
    to.set_remote_description(offer.clone()).await.unwrap();
    let answer = to.create_answer(AnswerOptions::default()).await.unwrap();
    to.set_local_description(answer.clone()).await.unwrap();
    from.set_remote_description(answer.clone()).await.unwrap();
    (offer.to_string(), answer.to_string())
}

fn play_tone(factory: &PeerConnectionFactory, hz: f64) -> RtcAudioTrack {
    let source = NativeAudioSource::new(AudioSourceOptions::default(), RATE, 1, 100);
    let id = libwebrtc::native::create_random_uuid();
    let track = factory.create_audio_track(&id, source.clone());
    tokio::spawn(async move {
        let mut at = 0_u64;
        loop {
            let mut frame = AudioFrame::new(RATE, 1, RATE / 100);
            for sample in frame.data.to_mut() {
                *sample = (f64::sin(at as f64 * hz * TAU / f64::from(RATE)) * 8_000.0) as i16;
                at += 1;
            }
            if source.capture_frame(&frame).await.is_err() {
                return;
            }
        }
    });
    track
}

/// Share of the energy that is at `hz`.
fn share_at(samples: &[i16], hz: f64) -> f64 {
    let (mut re, mut im, mut all) = (0.0, 0.0, 0.0);
    for (i, sample) in samples.iter().enumerate() {
        let (s, phase) = (f64::from(*sample), i as f64 * hz * TAU / f64::from(RATE));
        re += s * phase.cos();
        im += s * phase.sin();
        all += s * s;
    }
    if all == 0.0 { 0.0 } else { 2.0 * (re * re + im * im) / (all * samples.len() as f64) }
}

async fn expect_tone(track: RtcAudioTrack, hz: f64) {
    let mut stream = NativeAudioStream::new(track, RATE as i32, 1);
    let mut heard = Vec::new();
    let window = RATE as usize / 4;
    let listen = async {
        while let Some(frame) = stream.next().await {
            heard.extend_from_slice(&frame.data);
            if heard.len() >= window && share_at(&heard[heard.len() - window..], hz) > 0.8 {
                return;
            }
        }
        panic!("the stream ended");
    };
    let in_time = timeout(BOUND, listen).await.is_ok();
    assert!(in_time, "no tone of {hz} Hz; the last second's share is {:.2}", {
        let last = heard.len().saturating_sub(RATE as usize);
        share_at(&heard[last..], hz)
    });
}

/// Gives each side's candidates to the other as they come; keeps their texts.
async fn trickle(
    mut candidates: Receiver<IceCandidate>,
    to: PeerConnection,
    seen: mpsc::Sender<String>,
) {
    while let Some(candidate) = candidates.recv().await {
        let _ = seen.try_send(candidate.candidate());
        let _ = to.add_ice_candidate(candidate).await;
    }
}

/// A call between two who may use nothing but this URL's relay.
async fn call_by(turn: &Turn, url: String) {
    let _turn = ONE_CALL.lock().await;
    let factory = PeerConnectionFactory::default();
    let relay_only = || config(std::slice::from_ref(&url), PASSWORD, IceTransportsType::Relay);
    let (alice, bob) = (side(&factory, relay_only()), side(&factory, relay_only()));
    let at_alice = play_tone(&factory, 440.0);
    let at_bob = play_tone(&factory, 660.0);
    alice.connection.add_track(at_alice.into(), &["alice"]).unwrap();
    bob.connection.add_track(at_bob.into(), &["bob"]).unwrap();
    let (offer, answer) = negotiate(&alice.connection, &bob.connection).await;
    let (seen_tx, mut seen) = mpsc::channel(64);
    tokio::spawn(trickle(alice.candidates, bob.connection.clone(), seen_tx.clone()));
    tokio::spawn(trickle(bob.candidates, alice.connection.clone(), seen_tx));
    let (mut alice_tracks, mut bob_tracks) = (alice.tracks, bob.tracks);
    tokio::join!(async { expect_tone(next(&mut bob_tracks).await, 440.0).await }, async {
        expect_tone(next(&mut alice_tracks).await, 660.0).await;
    },);

    for description in [offer, answer] {
        for line in description.lines().filter(|line| line.contains("a=candidate:")) {
            assert!(line.contains(" typ relay "), "{line}");
        }
    }
    let mut relayed = 0;
    while let Ok(candidate) = seen.try_recv() {
        assert!(candidate.contains(" typ relay raddr 0.0.0.0 "), "{candidate}");
        relayed += 1;
    }
    assert!(relayed >= 2, "both were trickled");

    // Closing gives both allocations back.
    alice.connection.close();
    bob.connection.close();
    turn.wait_for_log("delete: realm=<here>, username=<anna>", 2).await;
}

#[tokio::test]
async fn a_call_that_may_only_be_relayed_over_udp_is_heard_both_ways() {
    let turn = Turn::start().await;
    call_by(&turn, format!("turn:127.0.0.1:{}", turn.port)).await;
}

/// A call from Alice, who may only be relayed, whose relay forgets it. Whoever offers it, the restart
/// leads over a new one.
async fn relay_is_renewed(alice_offers: bool) {
    let mut turn = Turn::start().await;
    let _turn = ONE_CALL.lock().await;
    let factory = PeerConnectionFactory::default();
    let url = format!("turn:127.0.0.1:{}", turn.port);
    let relay_only = config(std::slice::from_ref(&url), PASSWORD, IceTransportsType::Relay);
    let mut alice = side(&factory, relay_only);
    let mut bob = side(&factory, RtcConfiguration::default());
    let tone = play_tone(&factory, 440.0);
    alice.connection.add_track(tone.into(), &["alice"]).unwrap();
    negotiate(&alice.connection, &bob.connection).await;
    let (seen, _) = mpsc::channel(1);
    tokio::spawn(trickle(alice.candidates, bob.connection.clone(), seen.clone()));
    tokio::spawn(trickle(bob.candidates, alice.connection.clone(), seen));
    let track = next(&mut bob.tracks).await;
    expect_tone(track.clone(), 440.0).await;

    turn.restart().await;
    while next(&mut alice.states).await != PeerConnectionState::Disconnected {}
    let restart = OfferOptions { ice_restart: true, ..OfferOptions::default() };
    if alice_offers {
        negotiate_with(&alice.connection, &bob.connection, restart).await;
    } else {
        negotiate_with(&bob.connection, &alice.connection, restart).await;
    }
    let back = async { while next(&mut alice.states).await != PeerConnectionState::Connected {} };
    timeout(Duration::from_secs(5), back).await.expect("a new relay leads there");
    expect_tone(track, 440.0).await;
}

#[tokio::test]
async fn a_relayed_call_goes_on_by_an_ice_restart_after_its_server_has_forgotten_it() {
    relay_is_renewed(true).await;
}

#[tokio::test]
async fn it_goes_on_by_a_restart_that_the_other_side_offers() {
    relay_is_renewed(false).await;
}

#[tokio::test]
async fn a_call_that_may_only_be_relayed_over_tcp_is_heard_both_ways() {
    let turn = Turn::start().await;
    call_by(&turn, format!("turn:localhost:{}?transport=tcp", turn.port)).await;
}

#[tokio::test]
async fn a_call_that_may_only_be_relayed_over_tls_is_heard_both_ways() {
    let turn = Turn::start().await;
    libwebrtc::testing::trust(&turn.authority);
    call_by(&turn, format!("turns:localhost:{}", turn.tls_port)).await;
}

#[tokio::test]
async fn a_certificate_of_nobody_known_is_refused() {
    let turn = Turn::start().await;
    let factory = PeerConnectionFactory::default();
    let url = format!("turns:localhost:{}", turn.tls_port);
    let mut side =
        side(&factory, config(std::slice::from_ref(&url), PASSWORD, IceTransportsType::Relay));
    side.connection.create_data_channel("x", DataChannelInit::default()).unwrap();
    let offer = side.connection.create_offer(OfferOptions::default()).await.unwrap();
    side.connection.set_local_description(offer).await.unwrap();
    let error = next(&mut side.errors).await;
    assert_eq!((error.url, error.error_code), (url, 701));
    assert!(error.error_text.contains("certificate"), "{}", error.error_text);
}

#[tokio::test]
async fn servers_that_are_named_later_are_asked_and_what_is_wrong_with_them_is_told() {
    let turn = Turn::start().await;
    let factory = PeerConnectionFactory::default();
    let mut side = side(&factory, RtcConfiguration::default());
    side.connection.create_data_channel("x", DataChannelInit::default()).unwrap();
    let offer = side.connection.create_offer(OfferOptions::default()).await.unwrap();
    side.connection.set_local_description(offer).await.unwrap();
    assert_eq!(side.connection.ice_gathering_state(), IceGatheringState::Complete);

    // As livekit does it: the servers come with the answer to the join.
    let good = format!("turn:127.0.0.1:{}", turn.port);
    let wrong = "s3cr3t-but-wrong";
    side.connection
        .set_configuration(config(std::slice::from_ref(&good), wrong, IceTransportsType::All))
        .unwrap();
    let error = next(&mut side.errors).await;
    assert_eq!((error.url.as_str(), error.error_code), (good.as_str(), 401));
    assert!(!format!("{error:?}").contains("s3cr3t"), "{error:?}");

    let urls = [good, "turn:nobody@example.org".to_owned()];
    side.connection.set_configuration(config(&urls, PASSWORD, IceTransportsType::All)).unwrap();
    let error = next(&mut side.errors).await;
    assert_eq!((error.url.as_str(), error.error_code), (urls[1].as_str(), 400));
    loop {
        let candidate = next(&mut side.candidates).await.candidate();
        if candidate.contains(" typ relay ") {
            break;
        }
    }
    let offer = side.connection.create_offer(OfferOptions::default()).await.unwrap();
    assert!(offer.to_string().contains(" typ relay "), "later descriptions carry it, too");
}

#[tokio::test]
async fn a_relay_only_configuration_that_comes_later_takes_the_host_candidates_back() {
    let turn = Turn::start().await;
    let factory = PeerConnectionFactory::default();
    let side = side(&factory, RtcConfiguration::default());
    side.connection.create_data_channel("x", DataChannelInit::default()).unwrap();
    let url = format!("turn:127.0.0.1:{}", turn.port);
    side.connection.set_configuration(config(&[url], PASSWORD, IceTransportsType::Relay)).unwrap();
    let offer = side.connection.create_offer(OfferOptions::default()).await.unwrap();
    assert!(!offer.to_string().contains(" typ host"), "{}", offer.to_string());
}

#[tokio::test]
async fn a_host_that_is_to_be_hidden_is_in_no_description_and_its_call_is_heard() {
    let _turn = ONE_CALL.lock().await;
    let turn = Turn::start().await;
    let factory = PeerConnectionFactory::default();
    let url = format!("turn:127.0.0.1:{}", turn.port);
    let hidden = config(std::slice::from_ref(&url), PASSWORD, IceTransportsType::NoHost);
    let open = config(&[url], PASSWORD, IceTransportsType::All);
    let (alice, bob) = (side(&factory, hidden), side(&factory, open));
    let tone = play_tone(&factory, 440.0);
    alice.connection.add_track(tone.into(), &["alice"]).unwrap();
    let (offer, _) = negotiate(&alice.connection, &bob.connection).await;
    assert!(!offer.contains(" typ host"), "{offer}");
    let (seen_tx, mut seen) = mpsc::channel(64);
    tokio::spawn(trickle(alice.candidates, bob.connection.clone(), seen_tx));
    let mut tracks = bob.tracks;
    expect_tone(next(&mut tracks).await, 440.0).await;
    while let Ok(candidate) = seen.try_recv() {
        assert!(!candidate.contains(" typ host"), "{candidate}");
    }
}
