//! A sans-IO WebRTC audio and data peer over str0m.
//!
//! Nothing here opens a socket, spawns a task or reads a clock: datagrams and an [`Instant`] go
//! in, datagrams, events and the next deadline come out. So a call between two peers is a unit
//! test in virtual time.
//!
//! - [`peer::Peer`]: one peer connection. Offer and answer, ICE, DTLS-SRTP, data channels, RTP.
//! - [`send_queue::SendQueue`]: samples of one audio source to Opus packets, 20 ms each.
//! - [`playout::Playout`]: RTP packets of one remote track to 10 ms of samples, steadily.
//! - [`jitter_buffer::JitterBuffer`]: the order and the timing underneath it.
//! - [`keyframe`]: pictures of the video that is received, without decoding it.
//! - [`frame_crypto`]: LiveKit's end-to-end encryption of frames and data packets.
//!
//! Audio is signed 16-bit, interleaved. RTP time is in 1/48000 s whatever the sample rate
//! (RFC 7587 §4.1).
//!
//! [`Instant`]: std::time::Instant

mod arrivals;
mod channels;
pub mod codec;
pub mod data_channel;
pub mod frame_crypto;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod ice;
pub mod ice_server;
pub mod jitter_buffer;
pub mod keyframe;
mod media;
mod negotiation;
pub mod opus_format;
pub mod pacer;
pub mod peer;
pub mod playout;
mod red;
mod samples;
pub mod sdp;
pub mod send_queue;
pub mod stats;
pub mod stun;
pub mod transceiver;
mod transits;
pub mod turn;
pub mod vp8;

pub use str0m::{Candidate, CandidateKind, net};
