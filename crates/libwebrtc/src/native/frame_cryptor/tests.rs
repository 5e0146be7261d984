use std::sync::mpsc::{Receiver, sync_channel};

use rtc_audio::frame_crypto::CLEAR_OPUS;

use super::*;

const FRAME: &[u8] = b"\x78 an Opus packet";
const BOUND: Duration = Duration::from_secs(20);

fn provider(options: impl FnOnce(&mut KeyProviderOptions)) -> KeyProvider {
    let mut all = KeyProviderOptions {
        shared_key: true,
        ratchet_window_size: 0,
        ratchet_salt: b"LKFrameEncryptionKey".to_vec(),
        failure_tolerance: -1,
        key_ring_size: 16,
        key_derivation_algorithm: KeyDerivationAlgorithm::HKDF,
    };
    options(&mut all);
    KeyProvider::new(all)
}

fn with_key(secret: &[u8]) -> KeyProvider {
    let provider = provider(|_| {});
    assert!(provider.set_shared_key(0, secret.to_vec()));
    provider
}

fn states(cryptor: &FrameCryptor) -> Receiver<EncryptionState> {
    let (to, from) = sync_channel(16);
    cryptor.on_state_change(Some(Box::new(move |_, state| to.send(state).unwrap())));
    from
}

fn sealing(keys: &KeyProvider) -> (FrameCryptor, Sealing) {
    let cryptor = Cryptor::new("ann".into(), EncryptionAlgorithm::AesGcm, keys);
    let work = Mutex::new(SealingWork { ivs: None, scratch: Vec::new() });
    let handle = FrameCryptor { cryptor: Arc::clone(&cryptor) };
    handle.set_enabled(true);
    (handle, Sealing { cryptor, work })
}

fn opening(keys: &KeyProvider) -> (FrameCryptor, Opening) {
    let cryptor = Cryptor::new("ann".into(), EncryptionAlgorithm::AesGcm, keys);
    let handle = FrameCryptor { cryptor: Arc::clone(&cryptor) };
    handle.set_enabled(true);
    (handle, Opening { cryptor, work: Arc::default() })
}

fn seal(sealing: &Sealing) -> Arc<[u8]> {
    match sealing.transform(FRAME, CLEAR_OPUS) {
        Outcome::Replaced(frame) => frame,
        other => panic!("{other:?}"),
    }
}

fn opens(opening: &Opening, frame: &[u8]) -> bool {
    match opening.transform(frame, CLEAR_OPUS) {
        Outcome::Replaced(frame) => {
            assert_eq!(&*frame, FRAME);
            true
        }
        Outcome::Dropped => false,
        Outcome::Unchanged => panic!("passed as it is"),
    }
}

#[test]
fn a_receiver_with_the_key_opens_what_a_sender_seals() {
    let keys = with_key(b"secret");
    let ((sender, sealing), (receiver, opening)) = (sealing(&keys), opening(&keys));
    let (sent, received) = (states(&sender), states(&receiver));
    for _ in 0..3 {
        assert!(opens(&opening, &seal(&sealing)));
    }
    assert_eq!(sent.recv_timeout(BOUND).unwrap(), EncryptionState::Ok);
    assert_eq!(received.recv_timeout(BOUND).unwrap(), EncryptionState::Ok);
    assert!(sent.try_recv().is_err(), "told once");
}

#[test]
fn a_sender_encrypts_with_the_key_of_its_index() {
    let keys = with_key(b"secret");
    keys.set_shared_key(3, b"other".to_vec());
    let ((sender, sealing), (_receiver, opening)) = (sealing(&keys), opening(&keys));
    sender.set_key_index(3);
    let frame = seal(&sealing);
    assert_eq!(frame.last(), Some(&3));
    assert!(opens(&opening, &frame));
}

#[test]
fn nothing_passes_before_it_is_said_whether_to_encrypt() {
    let keys = with_key(b"secret");
    let (sender, sealing) = sealing(&keys);
    sender.cryptor.mode.store(UNDECIDED, Ordering::Release);
    assert!(!sender.enabled());
    assert_eq!(sealing.transform(FRAME, CLEAR_OPUS), Outcome::Dropped);
    sender.set_enabled(false);
    assert_eq!(sealing.transform(FRAME, CLEAR_OPUS), Outcome::Unchanged);
}

#[test]
fn without_a_key_nothing_goes_out() {
    let keys = provider(|_| {});
    let (sender, sealing) = sealing(&keys);
    let told = states(&sender);
    assert_eq!(sealing.transform(FRAME, CLEAR_OPUS), Outcome::Dropped);
    assert_eq!(told.recv_timeout(BOUND).unwrap(), EncryptionState::MissingKey);
    keys.set_shared_key(0, b"secret".to_vec());
    seal(&sealing);
    assert_eq!(told.recv_timeout(BOUND).unwrap(), EncryptionState::Ok);
    sender.set_key_index(5);
    assert_eq!(sealing.transform(FRAME, CLEAR_OPUS), Outcome::Dropped);
}

#[test]
fn another_cipher_is_refused() {
    let keys = with_key(b"secret");
    let cryptor = Cryptor::new("ann".into(), EncryptionAlgorithm::AesCbc, &keys);
    let handle = FrameCryptor { cryptor: Arc::clone(&cryptor) };
    handle.set_enabled(true);
    let told = states(&handle);
    let sealing = Sealing { cryptor, work: Mutex::new(SealingWork { ivs: None, scratch: vec![] }) };
    assert_eq!(sealing.transform(FRAME, CLEAR_OPUS), Outcome::Dropped);
    assert_eq!(told.recv_timeout(BOUND).unwrap(), EncryptionState::InternalError);
    let data = DataPacketCryptor::new(EncryptionAlgorithm::AesCbc, keys);
    assert!(data.encrypt("ann", 0, b"data").is_err());
}

#[test]
fn a_receiver_follows_a_sender_that_ratcheted() {
    let window = |options: &mut KeyProviderOptions| options.ratchet_window_size = 4;
    let (theirs, ours) = (provider(window), provider(window));
    for keys in [&theirs, &ours] {
        keys.set_shared_key(0, b"secret".to_vec());
    }
    let ((_sender, sealing), (receiver, opening)) = (sealing(&theirs), opening(&ours));
    let told = states(&receiver);
    theirs.ratchet_shared_key(0).unwrap();
    theirs.ratchet_shared_key(0).unwrap();
    assert!(!opens(&opening, &seal(&sealing)), "lost while later keys are derived");
    assert_eq!(told.recv_timeout(BOUND).unwrap(), EncryptionState::KeyRatcheted);
    assert!(opens(&opening, &seal(&sealing)));
    assert_eq!(told.recv_timeout(BOUND).unwrap(), EncryptionState::Ok);
}

#[test]
fn a_wrong_key_is_given_up_after_the_tolerated_failures_until_another_comes() {
    let ours = provider(|options| options.failure_tolerance = 2);
    ours.set_shared_key(0, b"wrong".to_vec());
    let ((_sender, sealing), (receiver, opening)) = (sealing(&with_key(b"secret")), opening(&ours));
    let told = states(&receiver);
    for _ in 0..2 {
        assert!(!opens(&opening, &seal(&sealing)));
    }
    assert!(opening.work.lock().given_up.is_none());
    assert!(!opens(&opening, &seal(&sealing)));
    assert_eq!(told.recv_timeout(BOUND).unwrap(), EncryptionState::DecryptionFailed);
    ours.set_shared_key(0, b"secret".to_vec());
    assert!(opens(&opening, &seal(&sealing)));
}

#[test]
fn of_the_servers_own_frames_only_silence_is_taken() {
    let keys = with_key(b"secret");
    keys.set_sif_trailer(b"SIF".to_vec());
    let (_receiver, opening) = opening(&keys);
    let silence = [&[0xf8, 0xff, 0xfe, 0, 0][..], b"SIF"].concat();
    let outcome = opening.transform(&silence, CLEAR_OPUS);
    assert_eq!(outcome, Outcome::Replaced(silence[..5].into()));
    assert!(!opens(&opening, &[FRAME, b"SIF"].concat()));
    assert!(!opens(&opening, FRAME), "nor anything else in clear");
}

#[test]
fn data_packets_open_with_the_key_and_with_none_else() {
    let data = |keys: KeyProvider| DataPacketCryptor::new(EncryptionAlgorithm::AesGcm, keys);
    let theirs = provider(|_| {});
    theirs.set_shared_key(2, b"secret".to_vec());
    let ours = provider(|options| options.ratchet_window_size = 2);
    ours.set_shared_key(2, b"secret".to_vec());
    let (sender, receiver) = (data(theirs.clone()), data(ours.clone()));

    let packet = sender.encrypt("ann", 2, b"hello").unwrap();
    assert_eq!((packet.iv.len(), packet.key_index), (IV_LEN, 2));
    assert_eq!(receiver.decrypt("ann", &packet).unwrap(), b"hello");
    theirs.ratchet_shared_key(2).unwrap();
    let later = sender.encrypt("ann", 2, b"later").unwrap();
    assert_ne!(later.iv, packet.iv);
    assert_eq!(receiver.decrypt("ann", &later).unwrap(), b"later");

    assert!(sender.encrypt("ann", 0, b"hello").is_err(), "no such key");
    assert!(data(with_key(b"other")).decrypt("ann", &packet).is_err());
    ours.set_shared_key(2, b"other".to_vec());
    assert!(receiver.decrypt("ann", &later).is_err());
    let short = EncryptedPacket { iv: vec![0; 4], ..packet.clone() };
    assert!(receiver.decrypt("ann", &short).is_err());
    let empty = EncryptedPacket { data: Vec::new(), ..packet };
    assert!(receiver.decrypt("ann", &empty).is_err());
}

#[test]
fn a_new_sender_waits_for_its_cryptor_while_a_room_asks_for_encryption() {
    let room = DataPacketCryptor::new(EncryptionAlgorithm::AesGcm, with_key(b"secret"));
    let new = undecided().expect("a room asks for encryption");
    assert_eq!(new.transform(FRAME, CLEAR_OPUS), Outcome::Dropped);
    let waited = Undecided::new(clock::now());
    assert_eq!(
        waited.transform(FRAME, CLEAR_OPUS),
        Outcome::Dropped,
        "a server may keep it from one"
    );
    allow_clear_beside_encrypted(true);
    assert_eq!(new.transform(FRAME, CLEAR_OPUS), Outcome::Dropped);
    assert_eq!(waited.transform(FRAME, CLEAR_OPUS), Outcome::Unchanged);
    allow_clear_beside_encrypted(false);
    drop(room);
}
