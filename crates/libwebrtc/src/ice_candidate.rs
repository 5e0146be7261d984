//! ICE candidates (RFC 8839 §5.1).

use std::fmt::{self, Debug, Display};

use crate::session_description::SdpParseError;

/// A candidate line with the section it belongs to.
#[derive(Clone)]
pub struct IceCandidate {
    pub(crate) mid: String,
    pub(crate) mline: i32,
    pub(crate) text: String,
}

impl IceCandidate {
    /// Takes a candidate line as it is. Whether it is acceptable shows when it is added to a peer
    /// connection.
    pub fn parse(sdp_mid: &str, sdp_mline_index: i32, sdp: &str) -> Result<Self, SdpParseError> {
        Ok(Self { mid: sdp_mid.to_owned(), mline: sdp_mline_index, text: sdp.to_owned() })
    }

    /// Mid of its section.
    pub fn sdp_mid(&self) -> String {
        self.mid.clone()
    }

    /// Index of its section.
    pub fn sdp_mline_index(&self) -> i32 {
        self.mline
    }

    /// The line, `candidate:…`.
    pub fn candidate(&self) -> String {
        self.text.clone()
    }
}

impl Display for IceCandidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Debug for IceCandidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IceCandidate").field("candidate", &self.text).finish_non_exhaustive()
    }
}
