//! What str0m does not tell of a remote description: media sections with their msids.
//!
//! A reader of lines, not a validator (RFC 8866): whatever it does not know it passes over, and no
//! text makes it fail.

use std::fmt::Write as _;

/// Direction of a media section as its writer sees it (RFC 8866 §6.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Direction {
    /// `a=sendrecv`, and what holds when nothing is written.
    #[default]
    SendRecv,
    /// `a=sendonly`
    SendOnly,
    /// `a=recvonly`
    RecvOnly,
    /// `a=inactive`
    Inactive,
}

impl Direction {
    /// Says whether the writer sends.
    pub fn sends(self) -> bool {
        matches!(self, Self::SendRecv | Self::SendOnly)
    }

    /// Says whether the writer receives.
    pub fn receives(self) -> bool {
        matches!(self, Self::SendRecv | Self::RecvOnly)
    }

    /// The direction that sends and receives as told.
    pub fn from_parts(sends: bool, receives: bool) -> Self {
        match (sends, receives) {
            (true, true) => Self::SendRecv,
            (true, false) => Self::SendOnly,
            (false, true) => Self::RecvOnly,
            (false, false) => Self::Inactive,
        }
    }

    fn from_attribute(name: &str) -> Option<Self> {
        match name {
            "sendrecv" => Some(Self::SendRecv),
            "sendonly" => Some(Self::SendOnly),
            "recvonly" => Some(Self::RecvOnly),
            "inactive" => Some(Self::Inactive),
            _ => None,
        }
    }

    fn attribute(self) -> &'static str {
        match self {
            Self::SendRecv => "sendrecv",
            Self::SendOnly => "sendonly",
            Self::RecvOnly => "recvonly",
            Self::Inactive => "inactive",
        }
    }
}

/// Kind of a section by its m-line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `m=audio`
    Audio,
    /// `m=video`
    Video,
    /// `m=application`: data channels.
    Application,
    /// Anything else.
    Other,
}

/// One `m=` section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// By the m-line.
    pub kind: Kind,
    /// `a=mid` (RFC 5888); empty when there is none.
    pub mid: String,
    /// Direction, session-level attribute included.
    pub direction: Direction,
    /// Stream ids of `a=msid` (RFC 8830) in order, without `-`, which stands for none.
    pub streams: Vec<String>,
    /// Port 0 outside of a bundle (RFC 8843 §7.3).
    pub rejected: bool,
}

/// Whether a description restarts ICE, by the one of the same side that it replaces: its username
/// fragment is another (RFC 8839 §4.4.1.1.1).
pub fn restarts_ice(before: &str, after: &str) -> bool {
    let fragment = |text: &str| {
        let of_line = |line: &str| line.strip_prefix("a=ice-ufrag:").map(|it| it.trim().to_owned());
        text.lines().find_map(of_line)
    };
    fragment(before).zip(fragment(after)).is_some_and(|(before, after)| before != after)
}

/// Reads the sections of a description.
pub fn sections(text: &str) -> Vec<Section> {
    let mut all: Vec<Section> = Vec::new();
    let mut session_direction = Direction::default();
    let mut bundled: Vec<&str> = Vec::new();
    for line in text.lines().map(str::trim_end) {
        if let Some(media) = line.strip_prefix("m=") {
            all.push(new_section(media, session_direction));
            continue;
        }
        let Some(attribute) = line.strip_prefix("a=") else { continue };
        let Some(section) = all.last_mut() else {
            if let Some(direction) = Direction::from_attribute(attribute) {
                session_direction = direction;
            } else if let Some(mids) = attribute.strip_prefix("group:BUNDLE ") {
                bundled.extend(mids.split_whitespace());
            }
            continue;
        };
        if let Some(direction) = Direction::from_attribute(attribute) {
            section.direction = direction;
        } else if let Some(mid) = attribute.strip_prefix("mid:") {
            mid.trim().clone_into(&mut section.mid);
        } else if let Some(msid) = attribute.strip_prefix("msid:") {
            let stream = msid.split_whitespace().next().unwrap_or("-");
            if stream != "-" && !section.streams.iter().any(|known| known == stream) {
                section.streams.push(stream.to_owned());
            }
        }
    }
    for section in &mut all {
        section.rejected &= !bundled.contains(&section.mid.as_str());
    }
    all
}

fn new_section(media: &str, direction: Direction) -> Section {
    let mut fields = media.split_whitespace();
    let kind = match fields.next() {
        Some("audio") => Kind::Audio,
        Some("video") => Kind::Video,
        Some("application") => Kind::Application,
        _ => Kind::Other,
    };
    let rejected = fields.next() == Some("0");
    Section { kind, mid: String::new(), direction, streams: Vec::new(), rejected }
}

/// Rewrites the direction of the sections for whose mid `wanted` gives one.
pub fn with_directions(text: &str, wanted: impl Fn(&str) -> Option<Direction>) -> String {
    let known = sections(text);
    let mut out = String::with_capacity(text.len() + 16);
    let mut at: Option<usize> = None;
    for line in text.lines().map(str::trim_end) {
        if line.starts_with("m=") {
            at = Some(at.map_or(0, |index| index + 1));
        }
        let section = at.and_then(|index| known.get(index));
        let direction = line.strip_prefix("a=").and_then(Direction::from_attribute);
        let replacement = match (section, direction) {
            (Some(section), Some(_)) => wanted(&section.mid),
            _ => None,
        };
        // Writing to a String cannot fail.
        let _ = match replacement {
            Some(direction) => write!(out, "a={}\r\n", direction.attribute()),
            None => write!(out, "{line}\r\n"),
        };
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OFFER: &str = "v=0\r\na=group:BUNDLE 0 aud vid\r\nm=application 9 UDP/DTLS/SCTP x\r\n\
        a=mid:0\r\nm=audio 0 UDP/TLS/RTP/SAVPF 111\r\na=mid:aud\r\na=sendonly\r\n\
        a=msid:PA_x|TR_y TR_y\r\na=msid:PA_x|TR_y TR_y\r\nm=video 0 RTP 96\r\na=mid:gone\r\n\
        a=msid:- track\r\n";

    #[test]
    fn sections_carry_direction_and_streams() {
        let all = sections(OFFER);
        assert_eq!(all.len(), 3);
        assert_eq!(all[0].kind, Kind::Application);
        assert_eq!(all[1].direction, Direction::SendOnly);
        assert_eq!(all[1].streams, ["PA_x|TR_y"]);
        assert!(!all[1].rejected, "port 0 in a bundle is no rejection");
        assert!(all[2].rejected && all[2].streams.is_empty());
    }

    #[test]
    fn only_the_named_direction_changes() {
        let text = with_directions(OFFER, |mid| (mid == "aud").then_some(Direction::Inactive));
        assert_eq!(sections(&text)[1].direction, Direction::Inactive);
        assert_eq!(text.replace("inactive", "sendonly"), OFFER);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(?s).{0,400}") {
            let _ = sections(&text);
            let _ = with_directions(&text, |_| Some(Direction::Inactive));
        }

        #[test]
        fn nor_do_shuffled_lines(
            lines in proptest::collection::vec(
                "(m=(audio|video|application) [0-9]{1,6} [A-Z/]{0,9})|(a=(mid:|msid:|group:BUNDLE |sendonly)[a-z |-]{0,9})",
                0..40,
            )
        ) {
            let text = lines.join("\r\n");
            let media = lines.iter().filter(|line| line.starts_with("m=")).count();
            prop_assert_eq!(sections(&text).len(), media);
        }
    }
}
