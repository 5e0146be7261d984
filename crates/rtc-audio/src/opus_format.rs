//! What a receiver asks of an Opus encoder in its description (RFC 7587 §6.1).
//!
//! str0m negotiates payload types for a whole session and keeps few of these parameters, so they
//! are read here, a section at a time. Like [`crate::sdp`] this is a reader of lines: no text makes
//! it fail.

use crate::codec::RTP_CLOCK;

/// Parameters of one section. The default is what holds when nothing is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpusFormat {
    /// `maxaveragebitrate` in bits per second.
    pub max_average_bitrate: Option<u32>,
    /// `maxplaybackrate` in Hz: what is above half of it would not be heard.
    pub max_playback_rate: u32,
    /// `useinbandfec`
    pub fec: bool,
    /// `usedtx`: silence may be left out.
    pub dtx: bool,
    /// `stereo`: more than one channel is of use.
    pub stereo: bool,
    /// `cbr`
    pub constant_bitrate: bool,
    /// RED (RFC 2198) is listed before Opus: it is preferred.
    pub red: bool,
}

impl Default for OpusFormat {
    fn default() -> Self {
        Self {
            max_average_bitrate: None,
            max_playback_rate: RTP_CLOCK,
            fec: false,
            dtx: false,
            stereo: false,
            constant_bitrate: false,
            red: false,
        }
    }
}

impl OpusFormat {
    /// What suits both of two receivers of one encoder.
    pub fn merge(self, other: Self) -> Self {
        let lower = [self.max_average_bitrate, other.max_average_bitrate];
        Self {
            max_average_bitrate: lower.into_iter().flatten().min(),
            max_playback_rate: self.max_playback_rate.max(other.max_playback_rate),
            fec: self.fec || other.fec,
            dtx: self.dtx && other.dtx,
            stereo: self.stereo || other.stereo,
            constant_bitrate: self.constant_bitrate || other.constant_bitrate,
            red: self.red && other.red,
        }
    }

    fn set(&mut self, key: &str, value: &str) {
        match key {
            "maxaveragebitrate" => self.max_average_bitrate = value.parse().ok(),
            "maxplaybackrate" => self.max_playback_rate = value.parse().unwrap_or(RTP_CLOCK),
            "useinbandfec" => self.fec = value == "1",
            "usedtx" => self.dtx = value == "1",
            "stereo" => self.stereo = value == "1",
            "cbr" => self.constant_bitrate = value == "1",
            _ => {}
        }
    }
}

/// Reads the sections with Opus in them: mid and parameters.
pub fn opus_formats(text: &str) -> Vec<(&str, OpusFormat)> {
    // What comes before the first m-line describes no section.
    let mut sections = text.split("\nm=");
    let first = sections.next().filter(|head| head.starts_with("m="));
    first.into_iter().chain(sections).filter_map(read_section).collect()
}

/// Lists Opus before the RED around it, in every section of an offer. So do browsers, and it leaves
/// the choice to the answer: livekit-server moves RED to the front unless the track declines it.
pub(crate) fn with_opus_first(text: &str) -> String {
    let reds: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("a=rtpmap:")?.split_once(" red/"))
        .map(|(payload_type, _)| payload_type)
        .collect();
    let mut out = String::with_capacity(text.len() + 2);
    for line in text.lines().map(str::trim_end) {
        if line.starts_with("m=audio ") {
            let (red, other): (Vec<_>, Vec<_>) = line
                .split(' ')
                .enumerate()
                .partition(|(at, field)| *at > 2 && reds.contains(field));
            let fields = other.into_iter().chain(red).map(|(_, field)| field);
            out.push_str(&fields.collect::<Vec<_>>().join(" "));
        } else {
            out.push_str(line);
        }
        out.push_str("\r\n");
    }
    out
}

fn read_section(section: &str) -> Option<(&str, OpusFormat)> {
    let mut lines = section.lines().map(str::trim_end);
    let mut order = lines.next()?.split_whitespace().skip(3);
    let (mut mid, mut opus) = (None, None);
    let mut reds = Vec::new();
    for line in lines.clone() {
        if let Some(value) = line.strip_prefix("a=mid:") {
            mid = Some(value.trim());
        } else if let Some(map) = line.strip_prefix("a=rtpmap:") {
            let Some((payload_type, encoding)) = map.split_once(' ') else { continue };
            match encoding.split('/').next() {
                Some(name) if name.eq_ignore_ascii_case("opus") => {
                    opus.get_or_insert(payload_type);
                }
                Some(name) if name.eq_ignore_ascii_case("red") => reds.push(payload_type),
                _ => {}
            }
        }
    }
    let opus = opus?;
    let mut format = OpusFormat::default();
    for line in lines {
        let parameters = line.strip_prefix("a=fmtp:").and_then(|rest| rest.split_once(' '));
        let Some((payload_type, parameters)) = parameters else { continue };
        if payload_type == opus {
            for parameter in parameters.split(';') {
                if let Some((key, value)) = parameter.split_once('=') {
                    format.set(key.trim(), value.trim());
                }
            }
        }
    }
    let first = order.find(|listed| *listed == opus || reds.contains(listed));
    format.red = first.is_some_and(|listed| listed != opus);
    Some((mid?, format))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ANSWER: &str = "v=0\r\ns=-\r\nm=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\n\
        a=mid:0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 63 111\r\na=mid:1\r\n\
        a=rtpmap:63 red/48000/2\r\na=fmtp:63 111/111\r\na=rtpmap:111 opus/48000/2\r\n\
        a=fmtp:111 minptime=10;useinbandfec=1; usedtx=1;stereo=1;maxaveragebitrate=510000\r\n\
        m=audio 9 UDP/TLS/RTP/SAVPF 111 63\r\na=rtpmap:63 red/48000/2\r\n\
        a=rtpmap:111 OPUS/48000/2\r\na=mid:2\r\na=fmtp:111 maxplaybackrate=16000;cbr=1\r\n";

    #[test]
    fn each_section_has_its_own_parameters() {
        let first = OpusFormat {
            max_average_bitrate: Some(510_000),
            fec: true,
            dtx: true,
            stereo: true,
            red: true,
            ..OpusFormat::default()
        };
        let second = OpusFormat {
            max_playback_rate: 16_000,
            constant_bitrate: true,
            ..OpusFormat::default()
        };
        assert_eq!(opus_formats(ANSWER), [("1", first), ("2", second)]);
    }

    #[test]
    fn an_offer_leaves_the_choice_of_red_to_the_answer() {
        let text = with_opus_first(ANSWER);
        assert!(opus_formats(&text).iter().all(|(_, format)| !format.red));
        assert_eq!(text.replace("SAVPF 111 63\r\na=mid:1", "SAVPF 63 111\r\na=mid:1"), ANSWER);
    }

    #[test]
    fn two_receivers_get_what_suits_both() {
        let frugal =
            OpusFormat { max_average_bitrate: Some(16_000), dtx: true, ..OpusFormat::default() };
        let rich = OpusFormat { fec: true, stereo: true, ..OpusFormat::default() };
        let both = frugal.merge(rich);
        assert_eq!(both.max_average_bitrate, Some(16_000));
        assert!(both.fec && both.stereo && !both.dtx);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(?s).{0,400}") {
            let _ = opus_formats(&text);
            let _ = with_opus_first(&text);
        }

        #[test]
        fn nor_do_shuffled_lines(
            lines in proptest::collection::vec(
                "(m=audio [0-9]{1,5} RTP( [0-9]{1,3}){0,4})|(a=(mid:|rtpmap:|fmtp:)[0-9]{0,3} ?(opus|red)?[a-z0-9;=/ ]{0,20})",
                0..40,
            )
        ) {
            let _ = opus_formats(&lines.join("\r\n"));
        }
    }
}
