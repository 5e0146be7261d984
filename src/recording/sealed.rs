//! A file encrypted in chunks (AES-256-GCM, NIST SP 800-38D), so that a part of it can be read
//! alone and a crash costs no more than the last chunk.
//!
//! A header of 16 bytes (a mark of 8, 8 random), then chunks of 4096 bytes and their tag of 16; the
//! last may be shorter. A chunk's nonce is the file's random part and its number: no two chunks
//! under one key share it.

use std::ops::Range;

use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand::{SecureRandom, SystemRandom},
};

use super::RecordingKey;

pub const HEADER: usize = 16;
pub const CHUNK: usize = 4096;
const TAG: usize = 16;
const SEALED: u64 = (CHUNK + TAG) as u64;
const MARK: [u8; 8] = *b"APHNREC1";

/// Of what is in a file of this size.
pub fn plain_size(stored: u64) -> u64 {
    let body = stored.saturating_sub(HEADER as u64);
    body / SEALED * CHUNK as u64 + (body % SEALED).saturating_sub(TAG as u64)
}

/// The numbers of the chunks that these bytes are in.
pub fn chunks_of(range: &Range<u64>) -> Range<u64> {
    range.start / CHUNK as u64..range.end.div_ceil(CHUNK as u64)
}

/// Where chunks are in the file; beyond its end when the last is short.
pub fn stored(chunks: &Range<u64>) -> Range<u64> {
    HEADER as u64 + chunks.start * SEALED..HEADER as u64 + chunks.end * SEALED
}

fn cipher(key: &RecordingKey) -> Option<LessSafeKey> {
    Some(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key.0).ok()?))
}

fn nonce(random: [u8; 8], chunk: u32) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[..8].copy_from_slice(&random);
    nonce[8..].copy_from_slice(&chunk.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// Encrypts as it is written. `None` from any of these: the system's cryptography fails.
#[derive(Debug)]
pub struct Sealer {
    cipher: LessSafeKey,
    random: [u8; 8],
    /// The next chunk's number.
    chunk: u32,
    waiting: Vec<u8>,
}

impl Sealer {
    pub fn new(key: &RecordingKey) -> Option<Self> {
        let mut random = [0; 8];
        SystemRandom::new().fill(&mut random).ok()?;
        Some(Self { cipher: cipher(key)?, random, chunk: 0, waiting: Vec::new() })
    }

    pub fn header(&self) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(&MARK);
        header[8..].copy_from_slice(&self.random);
        header
    }

    /// The chunks that are whole now.
    pub fn write(&mut self, plain: &[u8]) -> Option<Vec<u8>> {
        self.waiting.extend_from_slice(plain);
        let mut out = Vec::new();
        while self.waiting.len() >= CHUNK {
            let rest = self.waiting.split_off(CHUNK);
            let chunk = std::mem::replace(&mut self.waiting, rest);
            out.extend(self.seal(chunk)?);
        }
        Some(out)
    }

    /// The last chunk.
    pub fn finish(&mut self) -> Option<Vec<u8>> {
        if self.waiting.is_empty() {
            return Some(Vec::new());
        }
        let chunk = std::mem::take(&mut self.waiting);
        self.seal(chunk)
    }

    fn seal(&mut self, mut chunk: Vec<u8>) -> Option<Vec<u8>> {
        let nonce = nonce(self.random, self.chunk);
        self.chunk = self.chunk.checked_add(1)?;
        self.cipher.seal_in_place_append_tag(nonce, Aad::empty(), &mut chunk).ok()?;
        Some(chunk)
    }
}

/// Decrypts whole chunks.
#[derive(Debug, Clone)]
pub struct Opener {
    cipher: LessSafeKey,
    random: [u8; 8],
}

impl Opener {
    /// `None`: not such a file.
    pub fn new(key: &RecordingKey, header: &[u8]) -> Option<Self> {
        let random = header.get(..HEADER)?.strip_prefix(&MARK)?.try_into().ok()?;
        Some(Self { cipher: cipher(key)?, random })
    }

    /// What can be opened of a whole file, and how long that part of the file is: the rest is torn.
    pub fn open_whole(&self, file: &[u8]) -> (Vec<u8>, u64) {
        let (mut plain, mut whole) = (Vec::new(), HEADER.min(file.len()));
        for (chunk, number) in file[whole..].chunks(SEALED as usize).zip(0..) {
            let Some(opened) = self.open(number, chunk) else { break };
            plain.extend(opened);
            whole += chunk.len();
        }
        (plain, whole as u64)
    }

    /// Consecutive chunks, the first of this number. `None`: another key, or changed.
    pub fn open(&self, first: u64, stored: &[u8]) -> Option<Vec<u8>> {
        let mut plain = Vec::with_capacity(stored.len());
        for (chunk, number) in stored.chunks(SEALED as usize).zip(first..) {
            let mut chunk = chunk.to_vec();
            let nonce = nonce(self.random, u32::try_from(number).ok()?);
            plain.extend_from_slice(
                self.cipher.open_in_place(nonce, Aad::empty(), &mut chunk).ok()?,
            );
        }
        Some(plain)
    }
}
