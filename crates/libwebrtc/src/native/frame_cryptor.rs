//! End-to-end encryption, which is not there: everything here refuses, so that nothing that was
//! to be encrypted goes out in clear.
//!
//! livekit makes a [`DataPacketCryptor`] for a room that asks for encryption before anything is
//! published in it, and a [`FrameCryptor`] only after. So while a `DataPacketCryptor` lives, no
//! audio track is published by this process at all, and a sender that gets a `FrameCryptor` is
//! sealed for good.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::audio_track::Kind;
use crate::engine::callback::Callback;
use crate::media_stream_track::MediaStreamTrack;
use crate::native::packet_trailer::PacketTrailerHandler;
use crate::peer_connection_factory::PeerConnectionFactory;
use crate::rtp_receiver::RtpReceiver;
use crate::rtp_sender::RtpSender;

const NOT_THERE: &str = "end-to-end encryption is not part of this audio engine";

/// Rooms that ask for encryption now.
static WANTED: AtomicUsize = AtomicUsize::new(0);

/// Says whether some room of this process asks for encryption.
pub(crate) fn is_wanted() -> bool {
    WANTED.load(Ordering::Acquire) > 0
}

struct Wanted;

impl Wanted {
    fn new() -> Self {
        WANTED.fetch_add(1, Ordering::AcqRel);
        log::error!("{NOT_THERE}: nothing will be published in clear while a room asks for it");
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
    /// How far keys are ratcheted to find one.
    pub ratchet_window_size: i32,
    /// Salt.
    pub ratchet_salt: Vec<u8>,
    /// Failures before a key counts as wrong.
    pub failure_tolerance: i32,
    /// Keys kept.
    pub key_ring_size: i32,
    /// How a key is made.
    pub key_derivation_algorithm: KeyDerivationAlgorithm,
}

/// The cipher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EncryptionAlgorithm {
    /// AES-GCM.
    AesGcm,
    /// AES-CBC.
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
    /// What this engine always reports.
    InternalError,
}

/// An encrypted data packet.
#[derive(Debug, Clone)]
pub struct EncryptedPacket {
    /// Ciphertext.
    pub data: Vec<u8>,
    /// Initialisation vector.
    pub iv: Vec<u8>,
    /// Which key.
    pub key_index: u32,
}

/// Takes no keys.
#[derive(Debug, Clone)]
pub struct KeyProvider {
    _private: (),
}

impl KeyProvider {
    /// A provider that keeps nothing.
    pub fn new(_options: KeyProviderOptions) -> Self {
        log::error!("{NOT_THERE}");
        Self { _private: () }
    }

    /// Refuses.
    pub fn set_shared_key(&self, _key_index: i32, _key: Vec<u8>) -> bool {
        false
    }

    /// None.
    pub fn ratchet_shared_key(&self, _key_index: i32) -> Option<Vec<u8>> {
        None
    }

    /// None.
    pub fn get_shared_key(&self, _key_index: i32) -> Option<Vec<u8>> {
        None
    }

    /// Refuses.
    pub fn set_key(&self, _participant_id: String, _key_index: i32, _key: Vec<u8>) -> bool {
        false
    }

    /// None.
    pub fn ratchet_key(&self, _participant_id: String, _key_index: i32) -> Option<Vec<u8>> {
        None
    }

    /// None.
    pub fn get_key(&self, _participant_id: String, _key_index: i32) -> Option<Vec<u8>> {
        None
    }

    /// Does nothing.
    pub fn set_sif_trailer(&self, _trailer: Vec<u8>) {}
}

/// Seals a sender, or silences a receiver.
#[derive(Clone)]
pub struct FrameCryptor {
    participant: String,
    on_state: Arc<Callback<OnStateChange>>,
}

impl FrameCryptor {
    /// From now on the sender sends nothing.
    pub fn new_for_rtp_sender(
        _peer_factory: &PeerConnectionFactory,
        participant_id: String,
        _algorithm: EncryptionAlgorithm,
        _key_provider: KeyProvider,
        sender: RtpSender,
    ) -> Self {
        sender.handle.sealed.store(true, Ordering::Release);
        log::error!("{NOT_THERE}: nothing is sent for {participant_id}");
        Self { participant: participant_id, on_state: Arc::default() }
    }

    /// From now on the receiver gives silence: ciphertext decoded as Opus would be noise.
    pub fn new_for_rtp_receiver(
        _peer_factory: &PeerConnectionFactory,
        participant_id: String,
        _algorithm: EncryptionAlgorithm,
        _key_provider: KeyProvider,
        receiver: RtpReceiver,
    ) -> Self {
        if let Some(MediaStreamTrack::Audio(track)) = receiver.track()
            && let Kind::Remote(remote) = &track.kind
        {
            remote.mute();
        }
        log::error!("{NOT_THERE}: nothing is heard of {participant_id}");
        Self { participant: participant_id, on_state: Arc::default() }
    }

    /// Changes nothing.
    pub fn set_enabled(&self, _enabled: bool) {}

    /// Says that nothing goes through in clear.
    pub fn enabled(&self) -> bool {
        true
    }

    /// Does nothing.
    pub fn set_key_index(&self, _index: i32) {}

    /// 0.
    pub fn key_index(&self) -> i32 {
        0
    }

    /// The participant's identity.
    pub fn participant_id(&self) -> String {
        self.participant.clone()
    }

    /// Tells the callback at once, from another thread, that encryption does not work.
    pub fn on_state_change(&self, handler: Option<OnStateChange>) {
        let told = handler.is_some();
        self.on_state.set(handler);
        if !told {
            return;
        }
        // The caller may hold locks that its callback takes.
        if let Ok(runtime) = crate::engine::runtime() {
            let (on_state, participant) = (Arc::clone(&self.on_state), self.participant.clone());
            runtime.spawn(async move {
                on_state.call(|f| f(participant, EncryptionState::InternalError));
            });
        }
    }

    /// Does nothing.
    pub fn set_packet_trailer_handler(&self, _handler: &PacketTrailerHandler) {}
}

/// Refuses to encrypt and to decrypt. While one lives, no audio is published.
#[derive(Clone)]
pub struct DataPacketCryptor {
    _wanted: Arc<Wanted>,
}

impl DataPacketCryptor {
    /// Says that a room asks for encryption.
    pub fn new(_algorithm: EncryptionAlgorithm, _key_provider: KeyProvider) -> Self {
        Self { _wanted: Arc::new(Wanted::new()) }
    }

    /// Always an error.
    pub fn encrypt(
        &self,
        _participant_id: &str,
        _key_index: u32,
        _data: &[u8],
    ) -> Result<EncryptedPacket, Box<dyn Error>> {
        Err(NOT_THERE.into())
    }

    /// Always an error.
    pub fn decrypt(
        &self,
        _participant_id: &str,
        _encrypted_packet: &EncryptedPacket,
    ) -> Result<Vec<u8>, Box<dyn Error>> {
        Err(NOT_THERE.into())
    }
}

impl std::fmt::Debug for FrameCryptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrameCryptor").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for DataPacketCryptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DataPacketCryptor").finish_non_exhaustive()
    }
}
