//! Opus (RFC 6716) in 20 ms frames, at the rates it takes without resampling.

use opus::{Application, Bandwidth, Bitrate, Channels, Signal};
use thiserror::Error;

use crate::opus_format::OpusFormat;

/// RTP clock of Opus, whatever the sample rate (RFC 7587 §4.1).
pub const RTP_CLOCK: u32 = 48_000;
/// Length of an encoded frame.
pub const FRAME_MS: u32 = 20;
/// RTP time of an encoded frame.
pub const FRAME_RTP: u32 = RTP_CLOCK / 1000 * FRAME_MS;
/// The longest packet Opus may hold (RFC 6716 §2.1.4), in milliseconds.
pub const MAX_PACKET_MS: u32 = 120;
/// Sample rates that Opus encodes from and decodes to directly.
pub const SAMPLE_RATES: [u32; 5] = [8_000, 12_000, 16_000, 24_000, 48_000];

/// The longest payload that we send: RFC 6716 §3.2.1 bounds one frame at 1275 bytes.
const MAX_PAYLOAD: usize = 1275;
/// For speech, a channel, when nobody asks for more or less.
const DEFAULT_BITRATE: u32 = 32_000;
/// Opus spends bits on forward error correction in proportion to the loss it is told of.
const EXPECTED_LOSS_PERCENT: i32 = 10;
/// A 0..=10 trade of CPU for quality (docs/benchmarks.md): what is above costs a fifth more for
/// little, what is below is heard.
const COMPLEXITY: i32 = 6;
/// From here on, a channel, Opus' transform layer alone (CELT) is as good for speech as both layers
/// are at 48 kbit/s, for a third of the CPU. It has no in-band forward error correction.
const TRANSFORM_BITRATE: i32 = 64_000;
const TRANSFORM_COMPLEXITY: i32 = 0;

/// Why audio could not be encoded or decoded.
#[derive(Debug, Error)]
pub enum CodecError {
    /// Opus has no such sample rate.
    #[error("{0} Hz is not a sample rate of Opus: 8000, 12000, 16000, 24000 and 48000 are")]
    SampleRate(u32),
    /// Only mono and stereo are there.
    #[error("{0} channels: audio is mono or stereo")]
    Channels(u32),
    /// libopus refused the input.
    #[error("opus: {0}")]
    Opus(#[from] opus::Error),
}

fn channels(count: u32) -> Result<Channels, CodecError> {
    match count {
        1 => Ok(Channels::Mono),
        2 => Ok(Channels::Stereo),
        other => Err(CodecError::Channels(other)),
    }
}

/// Says whether Opus takes this format as it is.
pub fn check_format(sample_rate: u32, channel_count: u32) -> Result<(), CodecError> {
    channels(channel_count)?;
    if SAMPLE_RATES.contains(&sample_rate) {
        Ok(())
    } else {
        Err(CodecError::SampleRate(sample_rate))
    }
}

/// Encodes speech as its receiver asks for it; without being told, with in-band forward error
/// correction (RFC 6716 §2.1.7).
#[derive(Debug)]
pub struct Encoder {
    inner: opus::Encoder,
    buffer: Box<[u8; MAX_PAYLOAD]>,
    channels: u32,
    bitrate: Option<u64>,
    format: OpusFormat,
}

impl Encoder {
    /// `sample_rate` one of [`SAMPLE_RATES`], one or two channels.
    pub fn new(sample_rate: u32, channel_count: u32) -> Result<Self, CodecError> {
        check_format(sample_rate, channel_count)?;
        let mut inner =
            opus::Encoder::new(sample_rate, channels(channel_count)?, Application::Voip)?;
        inner.set_packet_loss_perc(EXPECTED_LOSS_PERCENT)?;
        let format = OpusFormat { fec: true, stereo: true, ..OpusFormat::default() };
        let mut encoder = Self {
            inner,
            buffer: Box::new([0; MAX_PAYLOAD]),
            channels: channel_count,
            bitrate: None,
            format,
        };
        encoder.apply()?;
        Ok(encoder)
    }

    /// Sets the target in bits per second; it stays within 6,000 to 510,000 and what the receiver
    /// takes.
    pub fn set_bitrate(&mut self, bits_per_second: u64) -> Result<(), CodecError> {
        self.bitrate = Some(bits_per_second);
        self.apply()
    }

    /// Encodes as the receiver asks for it (RFC 7587 §6.1).
    pub fn set_format(&mut self, format: OpusFormat) -> Result<(), CodecError> {
        if self.format == format {
            return Ok(());
        }
        self.format = format;
        self.apply()
    }

    /// The target in bits per second.
    fn target(&self) -> i32 {
        let heard = if self.format.stereo { self.channels } else { 1 };
        let wanted = self.bitrate.unwrap_or(u64::from(DEFAULT_BITRATE * heard));
        let most = self.format.max_average_bitrate.map_or(u64::MAX, u64::from);
        wanted.min(most).clamp(6_000, 510_000) as i32
    }

    fn apply(&mut self) -> Result<(), CodecError> {
        let format = self.format;
        let target = self.target();
        let heard = if format.stereo { self.channels } else { 1 };
        // A packet that goes twice needs no third copy, and it is only for that copy that Opus
        // would keep to its speech layer.
        let transform = format.red && target >= TRANSFORM_BITRATE * heard as i32;
        let inner = &mut self.inner;
        inner.set_inband_fec(format.fec && !transform)?;
        inner.set_signal(if transform { Signal::Music } else { Signal::Voice })?;
        inner.set_complexity(if transform { TRANSFORM_COMPLEXITY } else { COMPLEXITY })?;
        inner.set_vbr(!format.constant_bitrate)?;
        inner.set_max_bandwidth(bandwidth(format.max_playback_rate))?;
        inner.set_force_channels((!format.stereo).then_some(Channels::Mono))?;
        inner.set_bitrate(Bitrate::Bits(target))?;
        Ok(())
    }

    /// Encodes exactly 20 ms of interleaved samples.
    pub fn encode(&mut self, samples: &[i16]) -> Result<&[u8], CodecError> {
        let len = self.inner.encode(samples, self.buffer.as_mut_slice())?;
        Ok(&self.buffer[..len.min(MAX_PAYLOAD)])
    }
}

/// The widest band that a receiver with this sampling rate can play (RFC 7587 §3.1.1).
fn bandwidth(playback_rate: u32) -> Bandwidth {
    match playback_rate {
        0..=8_000 => Bandwidth::Narrowband,
        8_001..=12_000 => Bandwidth::Mediumband,
        12_001..=16_000 => Bandwidth::Wideband,
        16_001..=24_000 => Bandwidth::Superwideband,
        _ => Bandwidth::Fullband,
    }
}

/// Decodes straight to the rate and channels asked for. A stereo packet comes out of a mono
/// decoder mixed down, and a mono one out of a stereo decoder on both sides (RFC 6716 §2.1.6).
#[derive(Debug)]
pub struct Decoder {
    inner: opus::Decoder,
    channel_count: usize,
}

impl Decoder {
    /// `sample_rate` one of [`SAMPLE_RATES`], one or two channels.
    pub fn new(sample_rate: u32, channel_count: u32) -> Result<Self, CodecError> {
        check_format(sample_rate, channel_count)?;
        let inner = opus::Decoder::new(sample_rate, channels(channel_count)?)?;
        Ok(Self { inner, channel_count: channel_count as usize })
    }

    /// Forgets what was decoded: another stream begins.
    pub fn reset(&mut self) -> Result<(), CodecError> {
        Ok(self.inner.reset_state()?)
    }

    /// Decodes a packet into `out`, which must hold 120 ms; gives the interleaved sample count.
    pub fn decode(&mut self, payload: &[u8], out: &mut [i16]) -> Result<usize, CodecError> {
        if payload.is_empty() {
            return Ok(0);
        }
        Ok(self.inner.decode(payload, out, false)? * self.channel_count)
    }

    /// Rebuilds the frame before `next_payload` from the copy it carries, filling `out`, whose
    /// length says how long the lost frame was.
    pub fn recover(&mut self, next_payload: &[u8], out: &mut [i16]) -> Result<usize, CodecError> {
        Ok(self.inner.decode(next_payload, out, true)? * self.channel_count)
    }

    /// Makes up for a frame that is lost without a copy, filling `out`.
    pub fn conceal(&mut self, out: &mut [i16]) -> Result<usize, CodecError> {
        Ok(self.inner.decode(&[], out, false)? * self.channel_count)
    }
}

/// Says whether a packet carries a copy of the frame before it (in-band FEC, RFC 6716 §2.1.7).
///
/// Only the SILK layer has it, which says so right after the voice flags of its frames
/// (RFC 6716 §4.2.3 and §4.2.4): with a flag for each channel.
pub fn carries_copy(payload: &[u8]) -> bool {
    let [toc, first, ..] = payload else { return false };
    let config = toc >> 3;
    if config >= 16 {
        return false;
    }
    if toc & 0b11 != 0 {
        // Several frames, packed in ways of which libopus knows more than we need to.
        return true;
    }
    let silk_frames = match config {
        0..=11 => [1, 1, 2, 3][usize::from(config % 4)],
        _ => 1,
    };
    let flag = |bit: u32| first & 0x80_u8.checked_shr(bit).unwrap_or(0) != 0;
    let stereo = toc & 0b100 != 0;
    flag(silk_frames) || (stereo && flag(2 * silk_frames + 1))
}

/// Length of a packet in RTP time by its first bytes, `None` when they are no Opus packet.
pub fn packet_duration(payload: &[u8]) -> Option<u32> {
    if payload.is_empty() {
        return None;
    }
    let samples = opus::packet::get_nb_samples(payload, RTP_CLOCK).ok()? as u32;
    (1..=RTP_CLOCK / 1000 * MAX_PACKET_MS).contains(&samples).then_some(samples)
}

/// Level of the samples in dBov, 0 (loudest) to -127 (silence): what RFC 6464 §3 carries.
pub fn audio_level(samples: &[i16]) -> i8 {
    if samples.is_empty() {
        return -127;
    }
    let sum: f64 = samples.iter().map(|s| f64::from(*s) * f64::from(*s)).sum();
    let rms = (sum / samples.len() as f64).sqrt() / f64::from(i16::MAX);
    if rms <= 0.0 { -127 } else { (20.0 * rms.log10()).clamp(-127.0, 0.0).round() as i8 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tone(rate: u32, count: u32) -> Vec<i16> {
        let len = (rate / 50 * count) as usize;
        (0..len)
            .map(|i| {
                let t = i as f64 / f64::from(rate);
                (f64::sin(t * 440.0 * std::f64::consts::TAU) * 8_000.0) as i16
            })
            .flat_map(|s| std::iter::repeat_n(s, count as usize))
            .take(len)
            .collect()
    }

    #[test]
    fn every_rate_decodes_to_every_rate() {
        for from in SAMPLE_RATES {
            let mut encoder = Encoder::new(from, 1).unwrap();
            let packet = encoder.encode(&tone(from, 1)).unwrap().to_vec();
            assert_eq!(packet_duration(&packet), Some(FRAME_RTP));
            for to in SAMPLE_RATES {
                let mut out = vec![0; (to * MAX_PACKET_MS / 1000) as usize];
                let mut decoder = Decoder::new(to, 1).unwrap();
                assert_eq!(decoder.decode(&packet, &mut out).unwrap(), (to / 50) as usize);
            }
        }
    }

    /// Bytes of a second of tone, encoded for such a receiver.
    fn second(rate: u32, channels: u32, format: OpusFormat) -> (usize, Vec<u8>) {
        let mut encoder = Encoder::new(rate, channels).unwrap();
        encoder.set_format(format).unwrap();
        let samples = tone(rate, channels);
        let packets: Vec<_> = (0..50).map(|_| encoder.encode(&samples).unwrap().to_vec()).collect();
        (packets.iter().map(Vec::len).sum(), packets.last().unwrap().clone())
    }

    #[test]
    fn a_receiver_bounds_bitrate_band_and_channels() {
        let plain = OpusFormat::default();
        let (plenty, wide) = second(48_000, 1, plain);
        let (few, _) = second(48_000, 1, OpusFormat { max_average_bitrate: Some(12_000), ..plain });
        assert!(few < plenty / 2, "{few} of {plenty} bytes");
        let (_, narrow) = second(48_000, 1, OpusFormat { max_playback_rate: 8_000, ..plain });
        assert_eq!(opus::packet::get_bandwidth(&narrow).unwrap(), Bandwidth::Narrowband);
        assert_ne!(opus::packet::get_bandwidth(&wide).unwrap(), Bandwidth::Narrowband);
        let (_, mono) = second(48_000, 2, plain);
        assert_eq!(opus::packet::get_nb_channels(&mono).unwrap(), Channels::Mono);
        let (_, stereo) = second(48_000, 2, OpusFormat { stereo: true, ..plain });
        assert_eq!(opus::packet::get_nb_channels(&stereo).unwrap(), Channels::Stereo);
    }

    #[test]
    fn only_packets_with_a_copy_of_the_one_before_say_so() {
        let mut encoder = Encoder::new(16_000, 1).unwrap();
        let mut copies = 0;
        // A tone that goes on does not count as a voice for longer than this.
        for at in 0..25 {
            let packet = encoder.encode(&tone(16_000, 1)).unwrap().to_vec();
            copies += u32::from(at > 0 && carries_copy(&packet));
        }
        assert!(copies > 20, "{copies}");
        let mut plain = opus::Encoder::new(16_000, Channels::Mono, Application::Voip).unwrap();
        for _ in 0..50 {
            let packet = plain.encode_vec(&tone(16_000, 1), 1_000).unwrap();
            assert!(!carries_copy(&packet));
        }
        assert!(!carries_copy(&[]) && !carries_copy(&[0]), "no frame");
        assert!(!carries_copy(&[31 << 3, 0xff]), "CELT alone");
    }

    #[test]
    fn stereo_is_mixed_down_by_a_mono_decoder() {
        let mut encoder = Encoder::new(48_000, 2).unwrap();
        encoder.set_bitrate(128_000).unwrap();
        let mut decoder = Decoder::new(16_000, 1).unwrap();
        let mut out = vec![0; 1_920];
        // The tone on the left, nothing on the right: half of it in the mix.
        let mut level = -127;
        for _ in 0..20 {
            let mut stereo = tone(48_000, 2);
            stereo.iter_mut().skip(1).step_by(2).for_each(|sample| *sample = 0);
            let packet = encoder.encode(&stereo).unwrap().to_vec();
            let len = decoder.decode(&packet, &mut out).unwrap();
            assert_eq!(len, 320);
            level = audio_level(&out[..len]);
        }
        let whole = audio_level(&tone(48_000, 1));
        assert!((5..=7).contains(&(whole - level)), "{level} of {whole} dBov");
    }

    #[test]
    fn red_at_a_high_bitrate_takes_the_cheap_layer() {
        let celt = |format, bitrate| {
            let mut encoder = Encoder::new(24_000, 1).unwrap();
            encoder.set_bitrate(bitrate).unwrap();
            encoder.set_format(format).unwrap();
            // RFC 6716 §3.1: configurations from 16 on are CELT alone.
            encoder.encode(&tone(24_000, 1)).unwrap()[0] >> 3 >= 16
        };
        let plain = OpusFormat { fec: true, ..OpusFormat::default() };
        let red = OpusFormat { red: true, ..plain };
        assert!(celt(red, 64_000));
        assert!(!celt(red, 48_000) && !celt(plain, 64_000));
    }

    #[test]
    fn foreign_formats_are_refused() {
        assert!(matches!(Encoder::new(44_100, 1), Err(CodecError::SampleRate(44_100))));
        assert!(matches!(Decoder::new(48_000, 3), Err(CodecError::Channels(3))));
    }

    #[test]
    fn level_of_silence_and_of_full_scale() {
        assert_eq!(audio_level(&[0; 480]), -127);
        assert_eq!(audio_level(&[i16::MAX; 480]), 0);
    }
}
