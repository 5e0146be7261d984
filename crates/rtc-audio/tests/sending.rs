//! What goes out as RTP, seen by another implementation: str0m alone.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failure in a helper fails the test that calls it"
)]

mod pair;

use pair::{Bare, Ours, Pair, base};
use rtc_audio::send_queue::{EncodedFrame, SendQueue, TICK};
use str0m::rtp::{RedDecoder, RtpPacket};

type Call = Pair<Ours, Bare>;

fn call(red: bool, edit: impl Fn(&str) -> String) -> Call {
    let now = base();
    Pair::connect(Ours::new(now, 1_000, true), Bare::new(now, 2_000, false, red), now, edit)
}

/// Sends a frame; gives the packet that arrived.
fn send(call: &mut Call, frame: &EncodedFrame) -> RtpPacket {
    let id = call.a.id.unwrap();
    assert!(call.a.peer.send_audio(call.now, id, frame));
    call.deliver();
    call.b.last.take().unwrap()
}

fn frame(timestamp: u32, level: i8) -> EncodedFrame {
    let payload = [0x78, timestamp as u8, (timestamp >> 8) as u8];
    EncodedFrame { payload: payload.as_slice().into(), timestamp, marker: false, level, samples: 1 }
}

/// Makes Opus the first choice, as a server does for a track that declines RED.
fn opus_first(answer: &str) -> String {
    let changed = answer.replace(" 63 111", " 111 63");
    assert_ne!(answer, changed);
    changed
}

#[test]
fn a_remote_that_prefers_red_gets_each_packet_twice() {
    let mut call = call(true, str::to_owned);
    let first = send(&mut call, &frame(0, -30));
    let second = send(&mut call, &frame(960, -30));
    assert_eq!(*first.header.payload_type, 63);
    assert_eq!(RedDecoder::decode(&first.payload).unwrap().len(), 1);
    let blocks = RedDecoder::decode(&second.payload).unwrap();
    assert_eq!(blocks[0].payload, &*frame(0, 0).payload);
    assert_eq!(blocks[1].payload, &*frame(960, 0).payload);
    assert_eq!((blocks[0].pt, blocks[0].timestamp_offset), (111, 960));
}

#[test]
fn a_remote_that_does_not_gets_opus_alone() {
    let check = |mut call: Call| {
        let packet = send(&mut call, &frame(0, -30));
        assert_eq!(*packet.header.payload_type, 111);
        assert_eq!(*packet.payload, *frame(0, 0).payload);
    };
    check(call(false, str::to_owned));
    check(call(true, opus_first));
}

#[test]
fn red_can_be_declined_here() {
    let mut call = call(true, str::to_owned);
    let id = call.a.id.unwrap();
    call.a.peer.allow_red(id, false);
    assert_eq!(*send(&mut call, &frame(0, -30)).header.payload_type, 111);
}

#[test]
fn level_and_voice_are_told() {
    let mut call = call(true, str::to_owned);
    for (level, voice) in [(0, true), (-37, true), (-60, false), (-90, false), (-127, false)] {
        let packet = send(&mut call, &frame(0, level));
        assert_eq!(packet.header.ext_vals.audio_level, Some(level));
        assert_eq!(packet.header.ext_vals.voice_activity, Some(voice), "{level} dBov");
    }
}

#[test]
fn the_answer_steers_the_encoder() {
    let call = call(true, |answer| {
        answer.replace("useinbandfec=1", "useinbandfec=1;usedtx=1;maxaveragebitrate=16000")
    });
    let transceiver = call.a.peer.transceiver(call.a.id.unwrap()).unwrap();
    let format = transceiver.opus_format().unwrap();
    assert!(format.fec && format.dtx && format.red && !format.stereo);
    assert_eq!(format.max_average_bitrate, Some(16_000));
}

#[test]
fn a_muted_track_keeps_its_stream_alive_with_a_few_packets() {
    let mut call = call(true, str::to_owned);
    let id = call.a.id.unwrap();
    let mut queue = SendQueue::new(24_000, 1).unwrap();
    let mut sent = Vec::new();
    for tick in 0..200 {
        queue.set_silent(tick >= 100);
        queue.push(&[3_000, -3_000].repeat(240));
        if let Some(frame) = queue.tick().unwrap() {
            call.a.peer.send_audio(call.now, id, &frame);
            call.deliver();
            let packet = call.b.last.take().unwrap();
            sent.push((tick, packet.header.ext_vals.audio_level.unwrap()));
        }
        call.step(TICK);
    }
    let (loud, muted): (Vec<_>, Vec<_>) = sent.into_iter().partition(|(tick, _)| *tick < 100);
    assert!(loud.len() == 100 && loud.iter().all(|(_, level)| (-22..=-20).contains(level)));
    assert!((16..=22).contains(&muted.len()), "{} packets in 2 s", muted.len());
    assert!(muted.iter().skip(1).all(|(_, level)| *level == -127), "only the first may fade");
}
