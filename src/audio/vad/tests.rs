use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::audio::{resample::resample, wav};

const WEBRTC: VadEngine = VadEngine::Webrtc { mode: WebrtcMode::VeryAggressive };

const SPEECH: [&str; 16] = [
    "fixtures/audio/en-us-question",
    "fixtures/audio/en-gb-slow",
    "fixtures/audio/en-us-fast",
    "fixtures/audio/en-deep",
    "fixtures/audio/de-question",
    "fixtures/audio/es-question",
    "fixtures/audio/fr-short",
    "fixtures/audio/one-word",
    "fixtures/audio/pause-700ms",
    "fixtures/audio/two-turns",
    "fixtures/audio/interruption",
    "fixtures/audio/speech-in-noise-15db",
    "fixtures/audio/rate-44k1",
    "fixtures/audio/rate-48k",
    "fixtures/audio/float32",
    "assets/demo-caller",
];

fn detector(engine: VadEngine) -> VoiceDetector {
    VoiceDetector::new(VadConfig { engine, ..VadConfig::default() }).unwrap()
}

fn read(name: &str) -> Vec<i16> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name).with_extension("wav");
    let wav = wav::read(&path).unwrap();
    resample(&wav.samples, wav.sample_rate, SAMPLE_RATE).unwrap()
}

/// True starts and ends, in ms.
fn truth(name: &str) -> Vec<(i64, i64)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("{name}.expected.json"));
    let json: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let utterances = json["utterances"].as_array().unwrap();
    let ms = |utterance: &serde_json::Value, key: &str| utterance[key].as_i64().unwrap();
    utterances.iter().map(|one| (ms(one, "startMs"), ms(one, "endMs"))).collect()
}

fn events(detector: &mut VoiceDetector, samples: &[i16]) -> Vec<(VadEvent, u64)> {
    let mut events = Vec::new();
    detector.push(samples, |event, at| events.push((event, at)));
    events
}

/// When something happened and when it was told, in ms.
type Told = Vec<(i64, i64)>;

/// What the events say of the starts and of the ends of speech.
fn stretches(events: &[(VadEvent, u64)]) -> (Told, Told) {
    let (mut starts, mut ends) = (Vec::new(), Vec::new());
    for &(event, at) in events {
        let at = at as i64;
        match event {
            VadEvent::Faint => {}
            VadEvent::Started { speech_ms } => starts.push((at - i64::from(speech_ms), at)),
            VadEvent::Ended { silence_ms } => ends.push((at - i64::from(silence_ms), at)),
        }
    }
    (starts, ends)
}

fn white_noise(seconds: u32, amplitude: f32) -> Vec<i16> {
    let mut state = 0x2545_F491_u32;
    (0..seconds * SAMPLE_RATE)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            ((state as f32 / u32::MAX as f32 - 0.5) * 2.0 * amplitude) as i16
        })
        .collect()
}

/// Whether each utterance's start and end are told of where they truly are, and soon enough.
fn assert_found(engine: VadEngine, name: &str) {
    let (starts, ends) = stretches(&events(&mut detector(engine), &read(name)));
    for (start, end) in truth(name) {
        let near = |true_ms: i64, told: &[(i64, i64)]| {
            *told.iter().min_by_key(|(ms, _)| ms.abs_diff(true_ms)).unwrap()
        };
        let (found, told) = near(start, &starts);
        assert!(found.abs_diff(start) <= 120, "{name}: start {start}, found {found}");
        assert!(told - start <= 250, "{name}: start {start}, told at {told}");
        let (found, told) = near(end, &ends);
        assert!(found.abs_diff(end) <= 120, "{name}: end {end}, found {found}");
        assert!(told - end <= 250, "{name}: end {end}, told at {told}");
    }
}

#[test]
fn speech_is_found_where_it_is() {
    for name in SPEECH {
        assert_found(VadEngine::Earshot, name);
    }
}

#[test]
fn clean_speech_is_found_by_the_webrtc_engine_too() {
    for name in ["en-us-question", "en-gb-slow", "de-question", "pause-700ms", "two-turns"] {
        assert_found(WEBRTC, &format!("fixtures/audio/{name}"));
    }
}

#[test]
fn a_pause_in_an_utterance_is_a_pause() {
    let told = events(&mut detector(VadEngine::Earshot), &read("fixtures/audio/pause-700ms"));
    let (starts, ends) = stretches(&told);
    assert_eq!((starts.len(), ends.len()), (2, 2));
    assert!((starts[1].0 - ends[0].0).abs_diff(700) < 80);
}

#[test]
fn noise_and_short_sounds_start_nothing() {
    for name in [
        "silence",
        "noise-white",
        "noise-pink",
        "noise-hum",
        "short-click",
        "short-knock",
        "short-cough",
    ] {
        let samples = read(&format!("fixtures/audio/{name}"));
        assert_eq!(events(&mut detector(VadEngine::Earshot), &samples), [], "{name}");
    }
    for amplitude in [30.0, 300.0, 3_000.0, 10_000.0] {
        let noise = white_noise(20, amplitude);
        assert_eq!(events(&mut detector(VadEngine::Earshot), &noise), [], "{amplitude}");
    }
}

/// WebRTC's model holds on to a burst for 60 ms or more: a knock or a cough passes for speech.
#[test]
fn the_webrtc_engine_takes_bursts_for_speech_but_not_steady_noise() {
    for (name, starts) in [
        ("silence", 0),
        ("noise-white", 0),
        ("noise-pink", 0),
        ("noise-hum", 0),
        ("short-click", 0),
        ("short-knock", 1),
        ("short-cough", 1),
    ] {
        let told = events(&mut detector(WEBRTC), &read(&format!("fixtures/audio/{name}")));
        assert_eq!(stretches(&told).0.len(), starts, "{name}");
    }
}

#[test]
fn full_scale_and_silent_streams_are_survived_by_every_engine() {
    let modes = [
        WebrtcMode::Quality,
        WebrtcMode::LowBitrate,
        WebrtcMode::Aggressive,
        WebrtcMode::VeryAggressive,
    ];
    let engines = modes.map(|mode| VadEngine::Webrtc { mode }).into_iter();
    for engine in engines.chain([VadEngine::Earshot]) {
        let mut detector = detector(engine);
        for level in [0, i16::MAX, i16::MIN] {
            detector.push(&vec![level; 16_000], |_, _| {});
            assert!((0.0..=1.0).contains(&detector.probability()));
        }
        detector.push(&white_noise(1, 32_767.0), |_, _| {});
        assert_eq!(detector.stream_ms(), 4_000);
    }
}

#[test]
fn speech_cut_off_by_a_mute_ends_and_begins_again() {
    let samples = read("fixtures/audio/en-us-question");
    for engine in [VadEngine::Earshot, WEBRTC] {
        let mut detector = detector(engine);
        let half = samples.len() / 2;
        assert_eq!(events(&mut detector, &samples[..half]).len(), 1);
        let mut ended = Vec::new();
        detector.end(|event, at| ended.push((event, at)));
        let ms = half as u64 / 16;
        assert_eq!(ended, [(VadEvent::Ended { silence_ms: 0 }, ms)]);
        assert!(!detector.is_speech());
        let again = events(&mut detector, &samples[half..]);
        assert!(matches!(again[0], (VadEvent::Started { .. }, at) if at > ms), "{again:?}");
    }
}

#[test]
fn faults_of_a_configuration_are_all_told() {
    let config = VadConfig {
        threshold: f32::NAN,
        min_speech: Duration::from_mins(1),
        min_silence: Duration::from_secs(61),
        ..VadConfig::default()
    };
    assert_eq!(config.faults().len(), 3);
    let config = VadConfig { exit_threshold: 0.8, ..VadConfig::default() };
    let error = VoiceDetector::new(config).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the VAD's exit threshold must lie between 0 and its threshold, not 0.8"
    );
}

#[test]
fn a_detector_may_change_threads() {
    fn is_send<T: Send>() {}
    is_send::<VoiceDetector>();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn chunking_does_not_change_what_is_told(
        sizes in prop::collection::vec(1_usize..2_000, 1..20),
        webrtc in any::<bool>(),
    ) {
        let engine = if webrtc { WEBRTC } else { VadEngine::Earshot };
        let samples = read("fixtures/audio/fr-short");
        let whole = events(&mut detector(engine), &samples);
        let mut detector = detector(engine);
        let (mut told, mut rest, mut sizes) = (Vec::new(), &samples[..], sizes.iter().cycle());
        while !rest.is_empty() {
            let (now, later) = rest.split_at((*sizes.next().unwrap()).min(rest.len()));
            told.extend(events(&mut detector, now));
            rest = later;
        }
        prop_assert_eq!(whole, told);
    }
}

#[test]
fn what_is_not_judged_in_silence_moves_no_event_by_more_than_a_frame() {
    let near = |(a, b): (&(i64, i64), &(i64, i64))| a.0.abs_diff(b.0).max(a.1.abs_diff(b.1)) <= 16;
    let same = |a: &Told, b: &Told| a.len() == b.len() && a.iter().zip(b).all(near);
    for name in SPEECH {
        let speech = read(name);
        // From a digital silence to the noise of an encoder's pause.
        for faint in [0.0, 3.0, 8.4] {
            let mut samples = speech.clone();
            samples.extend(white_noise(2, faint));
            samples.extend(&speech);
            samples.extend(white_noise(1, faint));
            let told = stretches(&events(&mut detector(VadEngine::Earshot), &samples));

            let config = VadConfig::default();
            let mut every = earshot::Detector::default_boxed();
            let mut judge = Detector::new(Thresholds {
                enter: config.threshold,
                exit: config.exit_threshold,
                min_speech: config.min_speech,
                min_silence: config.min_silence,
                lag: config.engine.lag(),
            });
            let judged: Vec<_> = samples
                .chunks_exact(256)
                .zip(1_u64..)
                .filter_map(|(frame, n)| {
                    let event = judge.push(every.predict_i16(frame).clamp(0.0, 1.0), 256)?;
                    Some((within_stream(event, n * 16), n * 16))
                })
                .collect();
            let judged = stretches(&judged);
            let alike = same(&told.0, &judged.0) && same(&told.1, &judged.1);
            assert!(alike, "{name}, silence of {faint}: {told:?} for {judged:?}");
        }
    }
}
