//! End-to-end encryption as LiveKit's SDKs do it: of the frames of a sender or receiver, and of
//! data packets. The formats are in [`rtc_audio::frame_crypto`].
//!
//! Nothing goes out in clear by mistake. A sender with a [`FrameCryptor`] sends nothing until
//! `set_enabled` was called, and nothing without a key; it sends in clear only after
//! `set_enabled(false)`. livekit makes the cryptor a moment after the sender, so while a room of this
//! process asks for encryption (a [`DataPacketCryptor`] lives), new senders wait for it, for good unless
//! [`allow_clear_beside_encrypted`] was called.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rtc_audio::frame_crypto::{
    FrameTransform, IV_LEN, Ivs, KeySet, Outcome, SealedFrame, TAG_LEN, is_server_silence,
};
use zeroize::Zeroizing;

use super::keys::{Found, KeyStore, Search};
use super::reporter::Reporter;
use crate::engine::clock;
use crate::native::packet_trailer::PacketTrailerHandler;
use crate::peer_connection_factory::PeerConnectionFactory;
use crate::rtp_receiver::RtpReceiver;
use crate::rtp_sender::RtpSender;

/// How long a new sender waits for its cryptor while some room of the process asks for encryption.
const DECIDED_WITHIN: Duration = Duration::from_millis(300);

/// Rooms that ask for encryption now.
static WANTED: AtomicUsize = AtomicUsize::new(0);

/// Whether senders without a cryptor may send while some room asks for encryption.
static CLEAR_BESIDE_ENCRYPTED: AtomicBool = AtomicBool::new(false);

/// Says that rooms without encryption are joined by this process beside some with it. Until this is
/// called, a sender that was made while any room asked for encryption sends nothing until it gets a
/// cryptor: livekit gives it one only if the server says so, and a server that does not must not hear in
/// clear what is meant for no server. Once it was called, such a sender begins 300 ms after it was made.
pub fn allow_clear_beside_encrypted(allow: bool) {
    CLEAR_BESIDE_ENCRYPTED.store(allow, Ordering::Release);
}

/// What a new sender is to do until it gets a cryptor, if it gets one: nothing, while some room of this
/// process asks for encryption.
pub(crate) fn undecided() -> Option<Arc<dyn FrameTransform>> {
    let wanted = WANTED.load(Ordering::Acquire) > 0;
    wanted.then(|| Arc::new(Undecided::new(clock::now() + DECIDED_WITHIN)) as _)
}

struct Undecided {
    until: Instant,
    warned: AtomicBool,
}

impl Undecided {
    fn new(until: Instant) -> Self {
        Self { until, warned: AtomicBool::new(false) }
    }
}

impl FrameTransform for Undecided {
    fn transform(&self, _frame: &[u8], _clear: usize) -> Outcome {
        if clock::now() < self.until {
            return Outcome::Dropped;
        }
        if CLEAR_BESIDE_ENCRYPTED.load(Ordering::Acquire) {
            return Outcome::Unchanged;
        }
        if !self.warned.swap(true, Ordering::Relaxed) {
            log::error!(
                "a track is not sent: a room of this process asked for encryption, and the track has no \
                 cryptor. If its room is not encrypted, call \
                 frame_cryptor::allow_clear_beside_encrypted(true)"
            );
        }
        Outcome::Dropped
    }
}

#[derive(Debug)]
struct Wanted;

impl Wanted {
    fn new() -> Self {
        WANTED.fetch_add(1, Ordering::AcqRel);
        Self
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        WANTED.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Called with a participant's identity and the state of its encryption.
pub type OnStateChange = Box<dyn FnMut(String, EncryptionState) + Send + Sync>;

/// How a key is made from a secret.
#[derive(Copy, Clone, Debug)]
#[non_exhaustive]
pub enum KeyDerivationAlgorithm {
    /// RFC 8018.
    PBKDF2,
    /// RFC 5869.
    HKDF,
}

/// Options of a key provider.
#[derive(Debug, Clone)]
pub struct KeyProviderOptions {
    /// One key for all.
    pub shared_key: bool,
    /// How far keys are ratcheted to find one that fits; 64 at most.
    pub ratchet_window_size: i32,
    /// Salt of every derivation.
    pub ratchet_salt: Vec<u8>,
    /// Failures in a row before a key counts as wrong; negative: never.
    pub failure_tolerance: i32,
    /// Keys kept, 1 to 256.
    pub key_ring_size: i32,
    /// How a key is made.
    pub key_derivation_algorithm: KeyDerivationAlgorithm,
}

/// The cipher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EncryptionAlgorithm {
    /// AES-128-GCM.
    AesGcm,
    /// AES-CBC, which is refused.
    AesCbc,
}

/// State of one participant's encryption.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EncryptionState {
    /// Nothing came yet.
    New,
    /// It works.
    Ok,
    /// Could not encrypt.
    EncryptionFailed,
    /// Could not decrypt.
    DecryptionFailed,
    /// No key.
    MissingKey,
    /// The key went on.
    KeyRatcheted,
    /// The cipher is not one that this engine has.
    InternalError,
}

/// An encrypted data packet.
#[derive(Debug, Clone)]
pub struct EncryptedPacket {
    /// Ciphertext and tag.
    pub data: Vec<u8>,
    /// Initialisation vector, 12 bytes.
    pub iv: Vec<u8>,
    /// Which key.
    pub key_index: u32,
}

/// Keeps the keys of a room. Setting or ratcheting a key derives it in the caller, which takes tens
/// of milliseconds with PBKDF2.
#[derive(Debug, Clone)]
pub struct KeyProvider {
    pub(crate) store: Arc<KeyStore>,
}

impl KeyProvider {
    /// A provider without keys.
    pub fn new(options: KeyProviderOptions) -> Self {
        Self { store: Arc::new(KeyStore::new(options)) }
    }

    /// Sets the key of all; says whether keys are shared at all.
    pub fn set_shared_key(&self, key_index: i32, key: Vec<u8>) -> bool {
        self.store.set_shared(key_index, &Zeroizing::new(key))
    }

    /// Goes on to the next shared key; gives its secret.
    pub fn ratchet_shared_key(&self, key_index: i32) -> Option<Vec<u8>> {
        self.store.ratchet_shared(key_index)
    }

    /// The secret of the shared key.
    pub fn get_shared_key(&self, key_index: i32) -> Option<Vec<u8>> {
        self.store.shared_secret(key_index)
    }

    /// Sets the key of one participant.
    pub fn set_key(&self, participant_id: String, key_index: i32, key: Vec<u8>) -> bool {
        self.store.set(participant_id, key_index, &Zeroizing::new(key))
    }

    /// Goes on to the participant's next key; gives its secret.
    pub fn ratchet_key(&self, participant_id: String, key_index: i32) -> Option<Vec<u8>> {
        self.store.ratchet_own(participant_id, key_index)
    }

    /// The secret of the participant's key.
    pub fn get_key(&self, participant_id: String, key_index: i32) -> Option<Vec<u8>> {
        self.store.own_secret(&participant_id, key_index)
    }

    /// Sets the bytes that end the server's own frames, which are in clear. Of those only silence
    /// is taken.
    pub fn set_sif_trailer(&self, trailer: Vec<u8>) {
        self.store.set_server_trailer(trailer);
    }
}

/// Nobody said yet whether to encrypt: nothing passes.
const UNDECIDED: u8 = 0;
const ON: u8 = 1;
const OFF: u8 = 2;

/// What all handles of one cryptor and its transceiver share.
struct Cryptor {
    participant: String,
    algorithm: EncryptionAlgorithm,
    store: Arc<KeyStore>,
    mode: AtomicU8,
    key_index: AtomicI32,
    reporter: Arc<Reporter>,
}

impl Cryptor {
    fn new(participant: String, algorithm: EncryptionAlgorithm, keys: &KeyProvider) -> Arc<Self> {
        let cryptor = Self {
            reporter: Reporter::new(participant.clone()),
            participant,
            algorithm,
            store: Arc::clone(&keys.store),
            mode: AtomicU8::new(UNDECIDED),
            key_index: AtomicI32::new(0),
        };
        Arc::new(cryptor)
    }

    /// What happens to every frame, if that is settled without a look at it.
    fn settled(&self) -> Option<Outcome> {
        match self.mode.load(Ordering::Acquire) {
            OFF => Some(Outcome::Unchanged),
            ON if self.algorithm == EncryptionAlgorithm::AesGcm => None,
            ON => Some(self.drop_for(EncryptionState::InternalError)),
            _ => Some(Outcome::Dropped),
        }
    }

    fn drop_for(&self, state: EncryptionState) -> Outcome {
        self.reporter.report(state);
        Outcome::Dropped
    }
}

/// Encrypts what a transceiver sends.
struct Sealing {
    cryptor: Arc<Cryptor>,
    work: Mutex<SealingWork>,
}

struct SealingWork {
    ivs: Option<Ivs>,
    scratch: Vec<u8>,
}

impl FrameTransform for Sealing {
    fn transform(&self, frame: &[u8], clear: usize) -> Outcome {
        let cryptor = &*self.cryptor;
        if let Some(settled) = cryptor.settled() {
            return settled;
        }
        let index = cryptor.key_index.load(Ordering::Acquire);
        let found = cryptor.store.find(&cryptor.participant, index);
        let (Some(found), Ok(index)) = (found, u8::try_from(index)) else {
            return cryptor.drop_for(EncryptionState::MissingKey);
        };
        let mut work = self.work.lock();
        let SealingWork { ivs, scratch } = &mut *work;
        if ivs.is_none() {
            *ivs = Ivs::new().ok();
        }
        let sealed = ivs
            .as_mut()
            .and_then(|ivs| ivs.next_iv().ok())
            .and_then(|iv| found.keys.seal_frame(iv, index, clear, frame, scratch).ok());
        if sealed.is_none() {
            return cryptor.drop_for(EncryptionState::EncryptionFailed);
        }
        cryptor.reporter.report(EncryptionState::Ok);
        Outcome::Replaced(scratch.as_slice().into())
    }
}

/// Decrypts what a transceiver receives.
struct Opening {
    cryptor: Arc<Cryptor>,
    work: Arc<Mutex<OpeningWork>>,
}

#[derive(Default)]
struct OpeningWork {
    scratch: Vec<u8>,
    /// In a row.
    failures: u32,
    /// Version of the keys that were given up.
    given_up: Option<u64>,
    /// Later keys are being derived.
    searching: bool,
}

impl FrameTransform for Opening {
    fn transform(&self, frame: &[u8], clear: usize) -> Outcome {
        let cryptor = &*self.cryptor;
        if let Some(settled) = cryptor.settled() {
            return settled;
        }
        if let Some(frame) = cryptor.store.strip_server_trailer(frame) {
            let silence = is_server_silence(frame);
            return if silence { Outcome::Replaced(frame.into()) } else { Outcome::Dropped };
        }
        let Some(sealed) = SealedFrame::parse(frame, clear) else {
            return cryptor.drop_for(EncryptionState::DecryptionFailed);
        };
        let index = i32::from(sealed.key_index);
        let Some(found) = cryptor.store.find(&cryptor.participant, index) else {
            return cryptor.drop_for(EncryptionState::MissingKey);
        };
        let mut work = self.work.lock();
        if work.given_up == Some(found.version) {
            return Outcome::Dropped;
        }
        if sealed.open(&found.keys, &mut work.scratch).is_err() {
            let scratch = &mut work.scratch;
            let fits = |keys: &KeySet| sealed.open(keys, scratch).is_ok();
            match cryptor.store.search(&cryptor.participant, index, &found, false, fits) {
                Search::Ratcheted => cryptor.reporter.report(EncryptionState::KeyRatcheted),
                Search::Nothing => return self.failed(&mut work, found.version),
                Search::NotDerived => {
                    self.search_later(&mut work, frame, clear, found);
                    return Outcome::Dropped;
                }
            }
        }
        work.failures = 0;
        work.given_up = None;
        cryptor.reporter.report(EncryptionState::Ok);
        Outcome::Replaced(work.scratch.as_slice().into())
    }
}

impl Opening {
    fn failed(&self, work: &mut OpeningWork, version: u64) -> Outcome {
        work.failures = work.failures.saturating_add(1);
        if self.cryptor.store.tolerance().is_some_and(|most| work.failures > most) {
            work.given_up = Some(version);
            work.failures = 0;
            return self.cryptor.drop_for(EncryptionState::DecryptionFailed);
        }
        Outcome::Dropped
    }

    /// Derives later keys and tries them on a frame, on a thread where that may take its time. The
    /// frame itself is lost.
    fn search_later(&self, work: &mut OpeningWork, frame: &[u8], clear: usize, found: Found) {
        let Ok(runtime) = crate::engine::runtime() else { return };
        if std::mem::replace(&mut work.searching, true) {
            return;
        }
        let (cryptor, work) = (Arc::clone(&self.cryptor), Arc::clone(&self.work));
        let frame = frame.to_vec();
        runtime.spawn_blocking(move || {
            if let Some(sealed) = SealedFrame::parse(&frame, clear) {
                let mut scratch = Vec::new();
                let fits = |keys: &KeySet| sealed.open(keys, &mut scratch).is_ok();
                let index = i32::from(sealed.key_index);
                let result = cryptor.store.search(&cryptor.participant, index, &found, true, fits);
                if result == Search::Ratcheted {
                    cryptor.reporter.report(EncryptionState::KeyRatcheted);
                }
            }
            work.lock().searching = false;
        });
    }
}

/// Encrypts what a sender sends, or decrypts what a receiver receives: audio, and key frames of VP8.
/// It stays in effect when its last handle goes.
#[derive(Clone)]
pub struct FrameCryptor {
    cryptor: Arc<Cryptor>,
}

impl FrameCryptor {
    /// Encrypts what `sender` sends, under the key of `participant_id`.
    pub fn new_for_rtp_sender(
        _peer_factory: &PeerConnectionFactory,
        participant_id: String,
        algorithm: EncryptionAlgorithm,
        key_provider: KeyProvider,
        sender: RtpSender,
    ) -> Self {
        let cryptor = Cryptor::new(participant_id, algorithm, &key_provider);
        let work = Mutex::new(SealingWork { ivs: None, scratch: Vec::new() });
        let sealing = Arc::new(Sealing { cryptor: Arc::clone(&cryptor), work });
        sender.handle.set_sealing(sealing);
        Self { cryptor }
    }

    /// Decrypts what `receiver` receives, with the keys of `participant_id`.
    pub fn new_for_rtp_receiver(
        _peer_factory: &PeerConnectionFactory,
        participant_id: String,
        algorithm: EncryptionAlgorithm,
        key_provider: KeyProvider,
        receiver: RtpReceiver,
    ) -> Self {
        let cryptor = Cryptor::new(participant_id, algorithm, &key_provider);
        let opening = Arc::new(Opening { cryptor: Arc::clone(&cryptor), work: Arc::default() });
        receiver.handle.set_opening(Some(opening));
        Self { cryptor }
    }

    /// Until this is called nothing passes. With `false` everything passes in clear.
    pub fn set_enabled(&self, enabled: bool) {
        self.cryptor.mode.store(if enabled { ON } else { OFF }, Ordering::Release);
    }

    /// Says whether frames are encrypted or decrypted.
    pub fn enabled(&self) -> bool {
        self.cryptor.mode.load(Ordering::Acquire) == ON
    }

    /// Which key of the participant's ring a sender uses from now on.
    pub fn set_key_index(&self, index: i32) {
        self.cryptor.key_index.store(index, Ordering::Release);
    }

    /// The index that was set.
    pub fn key_index(&self) -> i32 {
        self.cryptor.key_index.load(Ordering::Acquire)
    }

    /// The participant's identity.
    pub fn participant_id(&self) -> String {
        self.cryptor.participant.clone()
    }

    /// Calls `handler` from now on with each change of the state, in their order, on the engine's
    /// threads.
    pub fn on_state_change(&self, handler: Option<OnStateChange>) {
        self.cryptor.reporter.set(handler);
    }

    /// Packet trailers are not part of this engine, see
    /// [`packet_trailer`](crate::native::packet_trailer).
    pub fn set_packet_trailer_handler(&self, _handler: &PacketTrailerHandler) {}
}

/// Encrypts and decrypts data packets.
#[derive(Clone)]
pub struct DataPacketCryptor {
    store: Arc<KeyStore>,
    algorithm: EncryptionAlgorithm,
    ivs: Arc<Mutex<Option<Ivs>>>,
    _wanted: Arc<Wanted>,
}

impl DataPacketCryptor {
    /// A cryptor with the keys of `key_provider`.
    pub fn new(algorithm: EncryptionAlgorithm, key_provider: KeyProvider) -> Self {
        Self {
            store: key_provider.store,
            algorithm,
            ivs: Arc::default(),
            _wanted: Arc::new(Wanted::new()),
        }
    }

    fn find(&self, participant: &str, key_index: u32) -> Result<(Found, i32), Box<dyn Error>> {
        if self.algorithm != EncryptionAlgorithm::AesGcm {
            return Err("only AES-GCM is part of this engine".into());
        }
        i32::try_from(key_index)
            .ok()
            .and_then(|index| Some((self.store.find(participant, index)?, index)))
            .ok_or_else(|| format!("{participant} has no key {key_index}").into())
    }

    /// Encrypts `data` under a key of `participant_id`.
    pub fn encrypt(
        &self,
        participant_id: &str,
        key_index: u32,
        data: &[u8],
    ) -> Result<EncryptedPacket, Box<dyn Error>> {
        let (found, _) = self.find(participant_id, key_index)?;
        let iv = {
            let mut ivs = self.ivs.lock();
            if ivs.is_none() {
                *ivs = Some(Ivs::new()?);
            }
            ivs.as_mut().ok_or("no random numbers")?.next_iv()?
        };
        let data = found.keys.seal_data(iv, data)?;
        Ok(EncryptedPacket { data, iv: iv.to_vec(), key_index })
    }

    /// Decrypts a packet of `participant_id`. Where the key does not fit, later ones are derived in
    /// the caller, once a key.
    pub fn decrypt(
        &self,
        participant_id: &str,
        encrypted_packet: &EncryptedPacket,
    ) -> Result<Vec<u8>, Box<dyn Error>> {
        let EncryptedPacket { data, iv, key_index } = encrypted_packet;
        let iv = <[u8; IV_LEN]>::try_from(iv.as_slice());
        let iv = iv.map_err(|_| "the packet's initialisation vector is not 12 bytes long")?;
        if data.len() < TAG_LEN {
            return Err("the packet is too short to be an encrypted one".into());
        }
        let (found, index) = self.find(participant_id, *key_index)?;
        if let Ok(data) = found.keys.open_data(iv, data) {
            return Ok(data);
        }
        let mut opened = None;
        self.store.search(participant_id, index, &found, true, |keys| {
            opened = keys.open_data(iv, data).ok();
            opened.is_some()
        });
        opened.ok_or_else(|| format!("no key {key_index} of {participant_id} fits").into())
    }
}

impl fmt::Debug for FrameCryptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameCryptor")
            .field("participant", &self.cryptor.participant)
            .field("enabled", &self.enabled())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for DataPacketCryptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataPacketCryptor").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
