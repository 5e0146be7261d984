//! What the audio path costs. Each figure is for one second of audio, but for Opus: one 20 ms frame.

#![allow(clippy::expect_used, reason = "what cannot be set up cannot be measured")]

use std::{hint::black_box, path::Path, time::Duration};

use antiphon::{
    audio::{
        playout::Playout,
        resample::{Resampler, resample},
        vad::{VadConfig, VadEngine, VoiceDetector, WebrtcMode},
        wav,
    },
    tts::SpeechId,
};
use divan::Bencher;
use opus::{Application, Channels, Decoder, Encoder};

fn main() {
    divan::main();
}

/// One second of speech at `rate`.
fn speech(rate: u32) -> Vec<i16> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/audio/en-us-fast.wav");
    let wav = wav::read(&path).expect("the fixture is there");
    let second = &wav.samples[8_000..24_000];
    resample(second, wav.sample_rate, rate).expect("a usual rate")
}

mod vad {
    use super::{Bencher, VadConfig, VadEngine, VoiceDetector, WebrtcMode, black_box, speech};

    fn run(bencher: Bencher, engine: VadEngine) {
        let config = VadConfig { engine, ..VadConfig::default() };
        let mut detector = VoiceDetector::new(config).expect("the defaults hold");
        let second = speech(16_000);
        bencher.bench_local(|| {
            for frame in second.chunks(160) {
                detector.push(black_box(frame), |event, at| {
                    black_box((event, at));
                });
            }
        });
    }

    #[divan::bench]
    fn earshot(bencher: Bencher) {
        run(bencher, VadEngine::Earshot);
    }

    #[divan::bench]
    fn webrtc(bencher: Bencher) {
        run(bencher, VadEngine::Webrtc { mode: WebrtcMode::VeryAggressive });
    }

    /// Without the thread that `VadEngine::Webrtc` keeps it on.
    #[divan::bench]
    fn webrtc_alone(bencher: Bencher) {
        let mut vad = webrtc_vad::Vad::new_with_rate_and_mode(
            webrtc_vad::SampleRate::Rate16kHz,
            webrtc_vad::VadMode::VeryAggressive,
        );
        let second = speech(16_000);
        bencher.bench_local(|| {
            for frame in second.chunks_exact(160) {
                let _ = black_box(vad.is_voice_segment(black_box(frame)));
            }
        });
    }
}

#[divan::bench(args = [(48_000, 16_000), (16_000, 48_000), (24_000, 48_000), (44_100, 16_000)])]
fn resample_second(bencher: Bencher, (from, to): (u32, u32)) {
    let mut resampler = Resampler::new(from, to).expect("usual rates");
    let second = speech(from);
    let mut out = Vec::with_capacity(to as usize + 1_000);
    bencher.bench_local(|| {
        for frame in second.chunks(from as usize / 100) {
            resampler.push(black_box(frame), &mut out);
        }
        black_box(&out);
        out.clear();
    });
}

#[divan::bench]
fn playout_second(bencher: Bencher) {
    let second = speech(24_000);
    let mut frame = [0; 240];
    let mut id = 0;
    let mut playout = Playout::new(24_000, Duration::from_mins(1));
    bencher.bench_local(|| {
        id += 1;
        playout.play(SpeechId(id));
        for piece in second.chunks(1_000) {
            playout.push(SpeechId(id), piece);
        }
        playout.finish(SpeechId(id));
        while playout.next_frame(&mut frame).is_some() {
            playout.set_queued_ms(0);
            while let Some(event) = playout.poll_event() {
                black_box(event);
            }
            black_box(&frame);
        }
    });
}

mod opus_frame {
    use super::{Application, Bencher, Channels, Decoder, Encoder, black_box, speech};

    fn encoder(rate: u32) -> Encoder {
        let mut encoder =
            Encoder::new(rate, Channels::Mono, Application::Voip).expect("a rate of Opus");
        encoder.set_inband_fec(true).expect("a setting of Opus");
        encoder.set_packet_loss_perc(5).expect("a setting of Opus");
        encoder
    }

    #[divan::bench(args = [24_000, 48_000])]
    fn encode(bencher: Bencher, rate: u32) {
        let mut encoder = encoder(rate);
        let second = speech(rate);
        let mut frames = second.chunks_exact(rate as usize / 50).cycle();
        let mut packet = [0; 1_500];
        bencher.bench_local(|| {
            let frame = frames.next().expect("a second has frames");
            encoder.encode(black_box(frame), &mut packet).expect("20 ms are a frame")
        });
    }

    #[divan::bench(args = [16_000, 24_000, 48_000])]
    fn decode(bencher: Bencher, rate: u32) {
        let mut encoder = encoder(48_000);
        let second = speech(48_000);
        let packets: Vec<Vec<u8>> = second
            .chunks_exact(960)
            .map(|frame| encoder.encode_vec(frame, 1_500).expect("20 ms are a frame"))
            .collect();
        let mut packets = packets.iter().cycle();
        let mut decoder = Decoder::new(rate, Channels::Mono).expect("a rate of Opus");
        let mut out = vec![0; rate as usize / 50];
        bencher.bench_local(|| {
            let packet = packets.next().expect("a second has packets");
            decoder.decode(black_box(packet), &mut out, false).expect("our own packet")
        });
    }
}
