//! Joins and leaves, and what they leave behind.

use std::{sync::Arc, time::Duration};

use ::livekit::{
    prelude::{RemoteTrack, Room, RoomEvent, RoomOptions},
    webrtc::audio_stream::native::NativeAudioStream,
};
use futures_util::StreamExt;
use serde::Serialize;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    sync::Notify,
};

use crate::{
    member::{self, JOIN},
    process::Child,
    support::livekit::LiveKit,
};

const ROOM: &str = "joins";
/// Joins before the first look: caches and pools fill, and the allocator's arenas, one a thread.
const WARM: usize = 300;

#[derive(Debug, Serialize)]
pub struct Report {
    joins: usize,
    pss_mb_before: f64,
    pss_mb_after: f64,
    grown_mb: f64,
    threads: usize,
}

/// One process joins and leaves a room with a standing caller in it, again and again: it publishes,
/// hears the caller, and goes.
pub async fn measure(server: &LiveKit, count: usize) -> Report {
    let mut caller = Child::start("callers", &server.url);
    caller.ask(&format!("join {ROOM}")).await;
    let mut joiner = Child::start("joiner", &server.url);
    repeat(&mut joiner, 0, WARM).await;
    let before = joiner.usage();
    repeat(&mut joiner, WARM, WARM + count).await;
    let after = joiner.usage();
    joiner.end().await;
    caller.end().await;
    let report = Report {
        joins: count,
        pss_mb_before: before.pss_mb,
        pss_mb_after: after.pss_mb,
        grown_mb: after.pss_mb - before.pss_mb,
        threads: after.threads,
    };
    println!(
        "{count} joins and leaves after {WARM}: PSS {:.1} -> {:.1} MB, grown by {:.2} MB; {} threads",
        report.pss_mb_before, report.pss_mb_after, report.grown_mb, report.threads
    );
    report
}

async fn repeat(joiner: &mut Child, from: usize, to: usize) {
    for number in from..to {
        joiner.ask(&format!("join {number}")).await;
        if number % 100 == 99 {
            eprintln!("{} of {to}: PSS {:.1} MB", number + 1, joiner.usage().pss_mb);
        }
    }
    // What ends with a room ends soon after it.
    tokio::time::sleep(Duration::from_secs(2)).await;
}

pub async fn serve(url: &str) {
    antiphon::room::warm_up::warm_up().await;
    antiphon::room::signal::install();
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let joined = tokio::time::timeout(JOIN, join_and_leave(url, &line)).await;
        println!("{}", if joined.is_ok() { "left" } else { "late" });
    }
}

async fn join_and_leave(url: &str, line: &str) {
    let token = LiveKit::token(ROOM, &line.replace(' ', "-"));
    let (room, mut events) =
        Room::connect(url, &token, RoomOptions::default()).await.expect("the room");
    let heard = Arc::new(Notify::new());
    let hearing = heard.clone();
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            if let RoomEvent::TrackSubscribed { track: RemoteTrack::Audio(track), .. } = event {
                let mut stream = NativeAudioStream::new(track.rtc_track(), 16_000, 1);
                let hearing = hearing.clone();
                tokio::spawn(async move {
                    if stream.next().await.is_some() {
                        hearing.notify_one();
                    }
                });
            }
        }
    });
    let source = ::livekit::webrtc::audio_source::native::NativeAudioSource::new(
        Default::default(),
        24_000,
        1,
        100,
    );
    member::publish(&room, source).await;
    heard.notified().await;
    antiphon::room::signal::leave(&room).await;
}
