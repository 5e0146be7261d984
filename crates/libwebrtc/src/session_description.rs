//! Session descriptions (RFC 8866) as text with their type.

use std::fmt::{self, Debug, Display};
use std::str::FromStr;

use thiserror::Error;

/// Type of a description (RFC 8829 §4.1.8).
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum SdpType {
    /// An offer.
    Offer,
    /// A provisional answer.
    PrAnswer,
    /// An answer.
    Answer,
    /// Takes an offer back.
    Rollback,
}

impl FromStr for SdpType {
    type Err = &'static str;

    fn from_str(sdp_type: &str) -> Result<Self, Self::Err> {
        match sdp_type {
            "offer" => Ok(Self::Offer),
            "pranswer" => Ok(Self::PrAnswer),
            "answer" => Ok(Self::Answer),
            "rollback" => Ok(Self::Rollback),
            _ => Err("invalid SdpType"),
        }
    }
}

impl Display for SdpType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Offer => "offer",
            Self::PrAnswer => "pranswer",
            Self::Answer => "answer",
            Self::Rollback => "rollback",
        })
    }
}

/// A description. Its `to_string` is the SDP text.
#[derive(Clone)]
pub struct SessionDescription {
    pub(crate) text: String,
    pub(crate) sdp_type: SdpType,
}

/// Why a description or candidate cannot be read.
#[derive(Clone, Error, Debug)]
#[error("Failed to parse sdp: {line} - {description}")]
pub struct SdpParseError {
    /// The line at fault.
    pub line: String,
    /// What is wrong with it.
    pub description: String,
}

impl SessionDescription {
    /// Takes a text as it is. Whether it is acceptable shows when it is set on a peer connection,
    /// which reports it as [`crate::RtcErrorType::InvalidSdp`]: callers unwrap this one.
    pub fn parse(sdp: &str, sdp_type: SdpType) -> Result<Self, SdpParseError> {
        Ok(Self { text: sdp.to_owned(), sdp_type })
    }

    /// Its type.
    pub fn sdp_type(&self) -> SdpType {
        self.sdp_type
    }
}

impl Display for SessionDescription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Debug for SessionDescription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The text holds ICE passwords.
        f.debug_struct("SessionDescription")
            .field("sdp_type", &self.sdp_type)
            .finish_non_exhaustive()
    }
}
