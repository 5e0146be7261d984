//! `antiphon demo`: a whole call without keys and without a server.
//!
//! Provider doubles that speak the real wire protocols run inside; two engine peers on loopback
//! stand in for the room; the bundled caller talks; transcripts go through the outbox to a control
//! endpoint over SQLite.

use std::{
    collections::VecDeque,
    ops::Range,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args;
use futures_util::StreamExt;
use libwebrtc::{
    audio_stream::native::NativeAudioStream, peer_connection_factory::PeerConnectionFactory,
};
use parking_lot::Mutex;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::{
    audio::{assets, wav},
    cli::{
        Exit, control, fail,
        runtime::{AgentRuntime, NewSession, double_endpoints},
        start,
        terminal::{self, Live},
    },
    clock,
    config::Setup,
    doubles::{self, Script},
    replay::{
        caller::{FRAME, PoliteCaller},
        realtime::conduct,
        report::Report,
        simulated::{Expected, Utterance},
    },
    room::{
        loopback::OneWay,
        media::{SourceVoice, TrackMicrophone, voice_source},
        stage,
    },
    session::{
        driver,
        ports::{Shown, Voice},
    },
};

/// The rate of the caller's voice and of the recording, in Hz.
const RATE: u32 = 16_000;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  antiphon demo                  a call; demo.wav is left behind (caller left, agent right)
  antiphon demo --serve          and the control endpoint stays up to look at the transcripts
  antiphon demo --json           the report as JSON")]
pub struct DemoArgs {
    /// Where the recording goes: stereo, 16 kHz, caller left, agent right
    #[arg(long, default_value = "demo.wav", value_name = "FILE")]
    out: PathBuf,
    /// Keep the control endpoint up after the call, until Ctrl-C
    #[arg(long)]
    serve: bool,
    /// Print a JSON report instead of the live view
    #[arg(long)]
    json: bool,
}

pub async fn run(setup: Setup, args: DemoArgs) -> Exit {
    match Box::pin(demo(setup, args)).await {
        Ok(exit) | Err(exit) => exit,
    }
}

async fn demo(mut setup: Setup, args: DemoArgs) -> Result<Exit, Exit> {
    let refuse = |message: String| {
        fail(&message);
        Exit::Usage
    };
    let Some(agent) = setup.agent.take() else { return Err(Exit::Usage) };
    let mut live = Live::new(args.json);

    // Control endpoint, outbox and doubles: all in this process, all on loopback.
    let stop = CancellationToken::new();
    let token = SecretString::from(uuid::Uuid::new_v4().simple().to_string());
    let config = &mut setup.config;
    config.state_dir = config.state_dir.join("demo");
    std::fs::create_dir_all(&config.state_dir).map_err(|error| {
        refuse(format!("{} cannot be made: {error}", config.state_dir.display()))
    })?;
    let database = config.state_dir.join("control.db");
    config.database_url = SecretString::from(format!("sqlite://{}", database.display()));
    let port = if args.serve { config.control_port } else { 0 };
    let control = control::serve(config, None, token.clone(), port, stop.clone()).await?;
    config.control_url = Url::parse(&format!("http://{}", control.addr)).ok();
    config.control_token = Some(token.clone());
    let reporter = start::reporter(config).await?;
    let expected: Expected = serde_json::from_str(assets::demo_caller_expected())
        .map_err(|error| refuse(error.to_string()))?;
    let said = expected.utterances;
    let doubles = doubles::serve(script(&said))
        .await
        .map_err(|error| refuse(format!("the provider doubles cannot start: {error}")))?;
    let base_url = Url::parse(&doubles.base_url()).map_err(|error| refuse(error.to_string()))?;
    let endpoints = double_endpoints(&agent, &base_url);
    let runtime = AgentRuntime::new(agent, endpoints, reporter.clone()).map_err(refuse)?;

    // The room: two engine peers.
    let room = format!("demo-{}", uuid::Uuid::new_v4().simple());
    let NewSession { config: session, providers, reporter: transcripts, .. } =
        runtime.session(&room, "", "", "agent-demo");
    let rate = providers.speaking.as_ref().map_or(24_000, |(_, tts)| tts.sample_rate());
    let factory = PeerConnectionFactory::default();
    let (mouth, voice) = (voice_source(RATE), voice_source(rate));
    let to_agent = OneWay::connect(&factory, "caller", mouth.clone());
    let to_caller = OneWay::connect(&factory, "agent", voice.clone());
    let (to_agent, to_caller) = tokio::try_join!(to_agent, to_caller)
        .map_err(|error| refuse(format!("the loopback room cannot be made: {error}")))?;
    live.line(&format!(
        "A call over two WebRTC peers on loopback; control endpoint at http://{}\n",
        control.addr
    ));

    // The caller talks, hears, and is recorded.
    let caller = wav::decode(assets::demo_caller(), "the demo's caller")
        .map_err(|error| refuse(error.to_string()))?;
    let speech: Arc<[i16]> = caller.samples.into();
    let start = clock::now();
    let caller = PoliteCaller::new(speech, said.iter().map(samples_of));
    let recorder =
        wav::StereoWriter::create(&args.out, RATE).map_err(|error| refuse(error.to_string()))?;
    let ears = Arc::new(Mutex::new(VecDeque::new()));
    let hearing = tokio::spawn(listen(
        NativeAudioStream::new(to_caller.track.clone(), RATE as i32, 1),
        ears.clone(),
    ));
    let (said_all, hung_up) = (CancellationToken::new(), CancellationToken::new());
    let caller = tokio::spawn(call(
        caller,
        start,
        Box::new(SourceVoice::new(mouth)),
        ears,
        recorder,
        (said_all.clone(), hung_up.clone()),
    ));

    let (room_sender, room_events) = mpsc::channel(64);
    let priced = providers.clone();
    providers.room.bind(&room_sender);
    let (shown_sender, shown) = mpsc::channel(1_024);
    let voice: Box<dyn Voice> = Box::new(SourceVoice::new(voice));
    let agent =
        tokio::spawn(driver::run(session, providers, room_events, Some(voice), shown_sender));
    let microphone = Box::new(TrackMicrophone::new(to_agent.track.clone()));
    let mut report = Report::new("demo", "realtime");
    let stop_signal = start::signals().ok_or(Exit::Usage)?.drain;
    let spoken = said_all.cancelled();
    let conversation =
        conduct(&room_sender, shown, microphone, start, spoken, async |at_ms, shown| {
            if let Shown::Transcript(segment) = shown {
                stage::report(&transcripts, segment).await;
            }
            if let Shown::Usage(usage) = shown {
                transcripts.usage(priced.used(*usage));
            }
            report.take(at_ms, shown);
            live.show(at_ms, shown);
        });
    let interrupted = tokio::select! {
        () = conversation => false,
        () = stop_signal.cancelled() => true,
    };
    report.price(&transcripts.used());
    agent.abort();
    hung_up.cancel();
    hearing.abort();
    let recorded = caller.await;
    transcripts.close().await;
    reporter.flush(Duration::from_secs(3)).await;
    if interrupted {
        return Ok(Exit::Interrupted);
    }
    if let Ok(Err(error)) = recorded {
        return Err(refuse(error.to_string()));
    }

    live.summary(&report);
    live.line(&format!("recording:   {} (caller left, agent right)", args.out.display()));
    live.line(&format!("transcripts: {} behind the control endpoint", database.display()));
    if args.json {
        terminal::json(&report);
    }
    if args.serve {
        live.line(&format!(
            "\nThe control endpoint stays up until Ctrl-C:\n  curl -H 'Authorization: Bearer {}' \
             http://{}/api/sessions",
            token.expose_secret(),
            control.addr
        ));
        stop_signal.cancelled().await;
    }
    stop.cancel();
    control.finished().await;
    Ok(Exit::Done)
}

/// What the providers make of the bundled caller.
fn script(said: &[Utterance]) -> Script {
    let answers = [
        "We are open from nine to five on Saturdays. Is there anything else I can do for you?",
        "Certainly. A table for four it is. I have noted it down, and we look forward to seeing you.",
        "You are very welcome. Goodbye!",
    ];
    let mut script = Script::new(said.iter().map(|said| said.text.as_str()), answers);
    // One utterance has two sentences.
    script.stt = script.stt.hang_over(Duration::from_millis(400));
    script
}

/// What the caller hears, queued for the recording.
async fn listen(mut stream: NativeAudioStream, ears: Arc<Mutex<VecDeque<i16>>>) {
    while let Some(frame) = stream.next().await {
        ears.lock().extend(frame.data.iter());
    }
}

/// The caller's side, 10 ms at a time, and both sides of the call on one time line.
async fn call(
    mut caller: PoliteCaller,
    start: Instant,
    mut mouth: Box<dyn Voice>,
    ears: Arc<Mutex<VecDeque<i16>>>,
    mut recorder: wav::StereoWriter,
    (said_all, hung_up): (CancellationToken, CancellationToken),
) -> Result<(), wav::WavError> {
    let (mut said, mut heard) = (Vec::new(), Vec::new());
    let mut due = start;
    while !hung_up.is_cancelled() {
        due += Duration::from_millis(10);
        tokio::time::sleep_until(due.into()).await;
        heard.clear();
        {
            let mut ears = ears.lock();
            let ready = ears.len().min(FRAME);
            heard.extend(ears.drain(..ready));
            // A slow start of the recording must not become a lasting delay of one side.
            let surplus = ears.len().saturating_sub(RATE as usize / 10);
            ears.drain(..surplus);
        }
        heard.resize(FRAME, 0);
        said.clear();
        caller.frame(&heard, &mut said);
        mouth.write(&said).await;
        recorder.write(&said, &heard)?;
        if caller.is_done() {
            said_all.cancel();
        }
    }
    recorder.finish()
}

/// Where an utterance lies in the caller's samples.
fn samples_of(said: &Utterance) -> Range<usize> {
    let at =
        |ms: u64| usize::try_from(ms).unwrap_or(usize::MAX).saturating_mul(RATE as usize / 1_000);
    at(said.start_ms)..at(said.end_ms)
}
