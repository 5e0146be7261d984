//! The agent's way out: synthesised audio → playout queue → voice track, paced by the clock.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tracing::warn;

use crate::{
    audio::playout::Playout,
    clock,
    session::{
        input::PlayoutEvent,
        ports::{LEAD_MS, LONGEST_SPEECH_MS, Voice},
    },
    tts::SpeechId,
};

const FRAME: Duration = Duration::from_millis(10);
const LEAD: Duration = Duration::from_millis(LEAD_MS as u64);
/// Frames are handed over when no more than this is left of the lead: a few at a time, so that a call
/// wakes nobody for each packet, and soon enough for a thread that is late.
const REFILL: Duration = Duration::from_millis(LEAD_MS as u64 / 2);

/// What the driver asks of the playout.
#[derive(Debug)]
pub enum PlayoutCommand {
    /// Mono s16 at the voice's rate.
    Push {
        id: SpeechId,
        samples: Vec<i16>,
    },
    /// No more audio will come for this speech.
    Finish {
        id: SpeechId,
    },
    Play {
        id: SpeechId,
    },
    /// Silence now; answered with the position heard.
    Clear {
        id: SpeechId,
    },
    Resume {
        id: SpeechId,
        from_ms: u64,
    },
    Cancel {
        id: SpeechId,
    },
}

/// Plays until the commands end. Frames are handed to the voice at most [`LEAD_MS`] ahead.
pub async fn playout_task(
    rate: u32,
    voice: Box<dyn Voice>,
    mut commands: mpsc::Receiver<PlayoutCommand>,
    events: mpsc::Sender<(SpeechId, PlayoutEvent)>,
) {
    let mut track = Track {
        playout: Playout::new(rate, Duration::from_millis(LONGEST_SPEECH_MS)),
        voice,
        frame: vec![0; rate as usize / 100],
        sent_by: None,
        starved: true,
    };
    loop {
        track.fill().await;
        while let Some(event) = track.playout.poll_event() {
            if events.send(event).await.is_err() {
                return;
            }
        }
        let wait = track.wait();
        let timer = async {
            match wait {
                Some(wait) => tokio::time::sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            command = commands.recv() => match command {
                Some(command) => track.obey(command),
                None => break,
            },
            () = timer => {}
        }
    }
    if track.playout.overflow() > 0 {
        warn!(samples = track.playout.overflow(), "a speech was longer than the playout keeps");
    }
}

struct Track {
    playout: Playout,
    voice: Box<dyn Voice>,
    frame: Vec<i16>,
    /// When all that the voice was given has been sent.
    sent_by: Option<Instant>,
    /// The playout had no further frame when it was last asked.
    starved: bool,
}

impl Track {
    fn queued(&self) -> Duration {
        self.sent_by.map_or(Duration::ZERO, |by| by.saturating_duration_since(clock::now()))
    }

    /// Hands frames over up to the lead, and tells the playout what has been heard.
    async fn fill(&mut self) {
        while self.queued() + FRAME <= LEAD {
            self.starved = self.playout.next_frame(&mut self.frame).is_none();
            if self.starved {
                break;
            }
            self.voice.write(&self.frame).await;
            let now = clock::now();
            self.sent_by = Some(self.sent_by.filter(|by| *by > now).unwrap_or(now) + FRAME);
        }
        self.playout.set_queued_ms(self.queued().as_millis() as u32);
    }

    /// How long nothing is to be done; `None`: until the next command.
    fn wait(&self) -> Option<Duration> {
        let queued = self.queued();
        if queued.is_zero() {
            // Whatever is missing comes by a command.
            return None;
        }
        let wait = if self.starved { queued } else { queued.saturating_sub(REFILL) };
        Some(wait.max(Duration::from_millis(1)))
    }

    fn obey(&mut self, command: PlayoutCommand) {
        match command {
            PlayoutCommand::Push { id, samples } => self.playout.push(id, &samples),
            PlayoutCommand::Finish { id } => self.playout.finish(id),
            PlayoutCommand::Play { id } => self.playout.play(id),
            PlayoutCommand::Clear { id } => {
                let unheard = self.queued().as_millis() as u32;
                self.voice.clear();
                self.sent_by = None;
                self.playout.clear(id, unheard);
            }
            PlayoutCommand::Resume { id, from_ms } => self.playout.resume(id, from_ms),
            PlayoutCommand::Cancel { id } => self.playout.cancel(id),
        }
    }
}
