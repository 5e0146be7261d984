//! End-to-end encryption of media frames and data packets, as LiveKit's SDKs do it.
//!
//! A secret becomes an AES-128-GCM key by PBKDF2-HMAC-SHA256 (RFC 8018 §5.2, 100,000 rounds) or by
//! HKDF-SHA256 (RFC 5869, 128 zero bytes as info), with the ratchet salt. Ratcheting derives the
//! next secret, of 32 bytes, from the last in the same way.
//!
//! An encrypted frame is
//!
//! ```text
//! clear bytes || ciphertext || tag (16) || IV (12) || length of the IV (1) || key index (1)
//! ```
//!
//! where the clear bytes, which are authenticated too, are what a forwarding server must read: one
//! byte of an Opus packet (its TOC, RFC 6716 §3.1), ten of a VP8 key frame (RFC 6386 §9.1). Data
//! packets have no clear bytes, and carry IV and key index beside them.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::{hkdf, pbkdf2, rand};
use thiserror::Error;
use zeroize::Zeroizing;

/// Bytes of an initialisation vector.
pub const IV_LEN: usize = 12;
/// Bytes of an authentication tag.
pub const TAG_LEN: usize = 16;
/// Clear bytes of an Opus packet.
pub const CLEAR_OPUS: usize = 1;
/// Clear bytes of a VP8 key frame.
pub const CLEAR_VP8_KEY: usize = 10;

const KEY_LEN: usize = 16;
const RATCHETED_LEN: usize = 32;
/// Length of the IV, and the key index.
const TRAILER_LEN: usize = 2;
const HKDF_INFO: [u8; 128] = [0; 128];
const ROUNDS: NonZeroU32 = NonZeroU32::new(100_000).unwrap();

/// An Opus packet of silence: what a server puts in when a track stops.
const OPUS_SILENCE: [u8; 3] = [0xf8, 0xff, 0xfe];
/// Length of the server's silence, padded with zeros.
const OPUS_SILENCE_LEN: usize = 80;

/// Encryption failed: wrong key, or changed on the way. More is not to be told (RFC 5116 §2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the cipher refused")]
pub struct CryptoError;

/// How a key is made of a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Derivation {
    /// RFC 8018. Takes tens of milliseconds: never on the way of a packet.
    Pbkdf2,
    /// RFC 5869.
    Hkdf,
}

impl Derivation {
    fn derive(self, secret: &[u8], salt: &[u8], key: &mut [u8]) -> Result<(), CryptoError> {
        match self {
            Self::Pbkdf2 => {
                pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, ROUNDS, salt, secret, key);
                Ok(())
            }
            Self::Hkdf => hkdf::Salt::new(hkdf::HKDF_SHA256, salt)
                .extract(secret)
                .expand(&[&HKDF_INFO], Length(key.len()))
                .and_then(|okm| okm.fill(key))
                .map_err(|_| CryptoError),
        }
    }
}

struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// A secret and the cipher made of it. Neither is shown, and both are wiped when dropped.
pub struct KeySet {
    secret: Zeroizing<Vec<u8>>,
    cipher: LessSafeKey,
}

impl KeySet {
    /// Makes the key of a secret.
    pub fn derive(secret: &[u8], salt: &[u8], how: Derivation) -> Result<Self, CryptoError> {
        let mut key = Zeroizing::new([0; KEY_LEN]);
        how.derive(secret, salt, key.as_mut_slice())?;
        let key = UnboundKey::new(&AES_128_GCM, key.as_slice()).map_err(|_| CryptoError)?;
        Ok(Self { secret: Zeroizing::new(secret.to_vec()), cipher: LessSafeKey::new(key) })
    }

    /// The key after this one.
    pub fn ratchet(&self, salt: &[u8], how: Derivation) -> Result<Self, CryptoError> {
        let mut next = Zeroizing::new([0; RATCHETED_LEN]);
        how.derive(&self.secret, salt, next.as_mut_slice())?;
        Self::derive(next.as_slice(), salt, how)
    }

    /// What the key was made of.
    pub fn secret(&self) -> &[u8] {
        &self.secret
    }

    /// Writes `frame` encrypted into `out`, all but its first `clear` bytes.
    pub fn seal_frame(
        &self,
        iv: [u8; IV_LEN],
        key_index: u8,
        clear: usize,
        frame: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), CryptoError> {
        let (header, text) = frame.split_at_checked(clear).ok_or(CryptoError)?;
        out.clear();
        out.reserve(frame.len() + TAG_LEN + IV_LEN + TRAILER_LEN);
        out.extend_from_slice(header);
        self.seal(iv, header, text, out)?;
        out.extend_from_slice(&iv);
        out.extend_from_slice(&[IV_LEN as u8, key_index]);
        Ok(())
    }

    /// Encrypts a data packet: gives ciphertext and tag.
    pub fn seal_data(&self, iv: [u8; IV_LEN], data: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let mut out = Vec::with_capacity(data.len() + TAG_LEN);
        self.seal(iv, &[], data, &mut out)?;
        Ok(out)
    }

    /// Decrypts a data packet: ciphertext and tag.
    pub fn open_data(&self, iv: [u8; IV_LEN], sealed: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let mut out = Vec::with_capacity(sealed.len());
        self.open(iv, &[], sealed, &mut out)?;
        Ok(out)
    }

    fn seal(
        &self,
        iv: [u8; IV_LEN],
        header: &[u8],
        text: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), CryptoError> {
        let start = out.len();
        out.extend_from_slice(text);
        let text = out.get_mut(start..).ok_or(CryptoError)?;
        let nonce = Nonce::assume_unique_for_key(iv);
        let sealed = self.cipher.seal_in_place_separate_tag(nonce, Aad::from(header), text);
        let Ok(tag) = sealed else {
            // Clear text must not stay where a caller might send it from.
            out.clear();
            return Err(CryptoError);
        };
        out.extend_from_slice(tag.as_ref());
        Ok(())
    }

    fn open(
        &self,
        iv: [u8; IV_LEN],
        header: &[u8],
        sealed: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), CryptoError> {
        let start = out.len();
        out.extend_from_slice(sealed);
        let sealed = out.get_mut(start..).ok_or(CryptoError)?;
        let nonce = Nonce::assume_unique_for_key(iv);
        let opened = self.cipher.open_in_place(nonce, Aad::from(header), sealed);
        let len = opened.map(|text| text.len());
        out.truncate(start + len.as_ref().copied().unwrap_or(0));
        len.map(|_| ()).map_err(|_| CryptoError)
    }
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeySet").finish_non_exhaustive()
    }
}

/// An encrypted frame, taken apart.
#[derive(Debug, Clone, Copy)]
pub struct SealedFrame<'a> {
    /// Which key of the sender's ring it needs.
    pub key_index: u8,
    iv: [u8; IV_LEN],
    header: &'a [u8],
    sealed: &'a [u8],
}

impl<'a> SealedFrame<'a> {
    /// Takes a frame apart; none when it is not of the form that is described [above](self).
    pub fn parse(frame: &'a [u8], clear: usize) -> Option<Self> {
        let (header, rest) = frame.split_at_checked(clear)?;
        let (rest, trailer) = rest.split_last_chunk::<TRAILER_LEN>()?;
        let [iv_len, key_index] = *trailer;
        let (sealed, iv) = rest.split_last_chunk::<IV_LEN>()?;
        let whole = usize::from(iv_len) == IV_LEN && sealed.len() >= TAG_LEN;
        whole.then_some(Self { key_index, iv: *iv, header, sealed })
    }

    /// Writes the frame in clear into `out`.
    pub fn open(&self, keys: &KeySet, out: &mut Vec<u8>) -> Result<(), CryptoError> {
        out.clear();
        out.extend_from_slice(self.header);
        keys.open(self.iv, self.header, self.sealed, out)
    }
}

/// Says whether `packet` is the silence that a server injects (in clear, for it has no key): Opus
/// silence, padded with zeros.
pub fn is_server_silence(packet: &[u8]) -> bool {
    packet.len() <= OPUS_SILENCE_LEN
        && packet
            .strip_prefix(&OPUS_SILENCE)
            .is_some_and(|padding| padding.iter().all(|byte| *byte == 0))
}

/// Initialisation vectors that do not repeat under one key (NIST SP 800-38D §8.2.1): eight random
/// bytes, which tell apart all who send with that key, and a count.
#[derive(Debug)]
pub struct Ivs {
    prefix: [u8; 8],
    count: u32,
}

impl Ivs {
    /// Draws the random part.
    pub fn new() -> Result<Self, CryptoError> {
        let mut ivs = Self { prefix: [0; 8], count: 0 };
        ivs.draw()?;
        Ok(ivs)
    }

    fn draw(&mut self) -> Result<(), CryptoError> {
        rand::fill(&mut self.prefix).map_err(|_| CryptoError)
    }

    /// The next one. After 2^32 of them the random part is drawn anew.
    pub fn next_iv(&mut self) -> Result<[u8; IV_LEN], CryptoError> {
        let mut iv = [0; IV_LEN];
        let (prefix, count) = iv.split_at_mut(self.prefix.len());
        prefix.copy_from_slice(&self.prefix);
        count.copy_from_slice(&self.count.to_be_bytes());
        self.count = self.count.wrapping_add(1);
        if self.count == 0 {
            self.draw()?;
        }
        Ok(iv)
    }
}

/// What becomes of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It goes on as it is.
    Unchanged,
    /// This goes on in its stead.
    Replaced(Arc<[u8]>),
    /// It ends here.
    Dropped,
}

/// Encrypts or decrypts the frames of one transceiver, see
/// [`Peer::set_sealing`](crate::peer::Peer::set_sealing). It is called for every packet with the
/// peer at a stand: it must not wait.
pub trait FrameTransform: Send + Sync {
    /// Transforms a frame of which the first `clear` bytes are not encrypted.
    fn transform(&self, frame: &[u8], clear: usize) -> Outcome;
}

/// A transform of a transceiver, if there is one.
#[derive(Clone, Default)]
pub(crate) struct Transform(Option<Arc<dyn FrameTransform>>);

impl Transform {
    pub(crate) fn new(transform: Option<Arc<dyn FrameTransform>>) -> Self {
        Self(transform)
    }

    /// The frame as it goes on; none when it ends here.
    pub(crate) fn apply(&self, frame: &Arc<[u8]>, clear: usize) -> Option<Arc<[u8]>> {
        let outcome = self.0.as_ref().map_or(Outcome::Unchanged, |t| t.transform(frame, clear));
        match outcome {
            Outcome::Unchanged => Some(Arc::clone(frame)),
            Outcome::Replaced(frame) => Some(frame),
            Outcome::Dropped => None,
        }
    }
}

impl fmt::Debug for Transform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Transform" } else { "no Transform" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALT: &[u8] = b"LKFrameEncryptionKey";
    const FRAME: &[u8] = b"\x78 an Opus packet";

    fn keys(secret: &[u8]) -> KeySet {
        KeySet::derive(secret, SALT, Derivation::Pbkdf2).unwrap()
    }

    fn sealed(keys: &KeySet) -> Vec<u8> {
        let mut out = Vec::new();
        keys.seal_frame([7; IV_LEN], 3, CLEAR_OPUS, FRAME, &mut out).unwrap();
        out
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
    }

    #[test]
    fn a_frame_opens_with_the_key_that_sealed_it() {
        let keys = keys(b"password");
        let sealed = sealed(&keys);
        assert_eq!(sealed.len(), FRAME.len() + TAG_LEN + IV_LEN + TRAILER_LEN);
        assert_eq!((sealed.first(), sealed.last()), (Some(&0x78), Some(&3)));
        assert!(!sealed.windows(4).any(|window| window == b"Opus"));
        let mut opened = Vec::new();
        let frame = SealedFrame::parse(&sealed, CLEAR_OPUS).unwrap();
        frame.open(&keys, &mut opened).unwrap();
        assert_eq!((opened.as_slice(), frame.key_index), (FRAME, 3));
    }

    // Computed with WebCrypto, which is what the JavaScript SDK uses.
    #[test]
    fn keys_and_frames_are_those_of_other_implementations() {
        let pbkdf2 = keys(b"password");
        assert_eq!(
            hex(&sealed(&pbkdf2)),
            "785b0b0da096062951e042f3916eac192cf4e73af2e367169e469475e916b01e0707070707070707070707070c03"
        );
        let next = pbkdf2.ratchet(SALT, Derivation::Pbkdf2).unwrap();
        assert_eq!(
            hex(next.secret()),
            "421890b1557504a8ea1a90c253b419e4e1a3a43283f7115909d6fce6926e5e5f"
        );
        assert_eq!(
            hex(&sealed(&next)),
            "78ee5caaa3f61d4b3e417a135ecad86ae12bc3bdcaf51f0eecdad129b8965b600707070707070707070707070c03"
        );
        let hkdf = KeySet::derive(b"password", SALT, Derivation::Hkdf).unwrap();
        assert_eq!(
            hex(&sealed(&hkdf)),
            "783116e9d1ba48da7f493d6ca8378d0e84a0a93c6be457f46850dec28b1443e20707070707070707070707070c03"
        );
    }

    #[test]
    fn another_key_or_a_changed_byte_does_not_open() {
        let keys = keys(b"password");
        let mut out = Vec::new();
        let whole = sealed(&keys);
        let frame = SealedFrame::parse(&whole, CLEAR_OPUS).unwrap();
        let other = KeySet::derive(b"passw0rd", SALT, Derivation::Hkdf).unwrap();
        assert_eq!(frame.open(&other, &mut out), Err(CryptoError));
        for at in 0..whole.len() - TRAILER_LEN {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            let frame = SealedFrame::parse(&changed, CLEAR_OPUS).unwrap();
            assert_eq!(frame.open(&keys, &mut out), Err(CryptoError), "byte {at}");
        }
    }

    #[test]
    fn what_is_too_short_or_has_another_iv_is_no_sealed_frame() {
        let keys = keys(b"password");
        let whole = sealed(&keys);
        for len in 0..CLEAR_OPUS + TAG_LEN + IV_LEN + TRAILER_LEN {
            assert!(SealedFrame::parse(&whole[whole.len() - len..], CLEAR_OPUS).is_none());
        }
        let mut other = whole.clone();
        let at = other.len() - 2;
        other[at] = 16;
        assert!(SealedFrame::parse(&other, CLEAR_OPUS).is_none());
    }

    #[test]
    fn ivs_do_not_repeat_and_tell_senders_apart() {
        let (mut one, mut two) = (Ivs::new().unwrap(), Ivs::new().unwrap());
        let mut seen = std::collections::HashSet::new();
        one.count = u32::MAX - 2;
        for _ in 0..8 {
            assert!(seen.insert(one.next_iv().unwrap()));
            assert!(seen.insert(two.next_iv().unwrap()));
        }
    }

    #[test]
    fn only_silence_passes_as_the_servers() {
        assert!(is_server_silence(&OPUS_SILENCE));
        let mut padded = OPUS_SILENCE.to_vec();
        padded.resize(OPUS_SILENCE_LEN, 0);
        assert!(is_server_silence(&padded));
        padded[40] = 1;
        assert!(!is_server_silence(&padded));
        assert!(!is_server_silence(FRAME));
    }

    #[test]
    fn nothing_of_a_secret_is_shown() {
        assert_eq!(format!("{:?}", keys(b"password")), "KeySet { .. }");
    }
}
