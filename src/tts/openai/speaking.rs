//! One speech: text in, requests one after the other, audio out.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures_util::StreamExt;
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};

use super::{Shared, proto::SAMPLE_RATE};
use crate::{
    clock,
    net::{http::Failure, warm::Lease},
    tts::{
        SpeechId, TtsError, TtsEvent,
        chunker::Chunker,
        pcm::to_samples,
        words::{MS_PER_CHAR, estimated, last_word, spread},
    },
};

/// The first piece waits so long for a few more words.
const FIRST_HOLD: Duration = Duration::from_millis(80);
/// Text is sent at any word when the audio at hand ends within this: about a request's time.
const RUNNING_OUT: Duration = Duration::from_millis(700);
/// Words are told so long before they are heard.
const SOON: Duration = Duration::from_millis(500);
/// Requests that are under way at once: the one that is heard and the next.
const AHEAD: usize = 2;
/// Pause before a piece is asked for again.
const RETRY: Duration = Duration::from_millis(150);

/// What a speech is given.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Text {
    More(String),
    End,
}

/// A piece on its way.
struct Piece {
    text: String,
    response: JoinHandle<Result<(reqwest::Response, Lease), Failure>>,
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.response.abort();
    }
}

struct Speaking {
    shared: Arc<Shared>,
    id: SpeechId,
    events: mpsc::Sender<TtsEvent>,
    chunker: Chunker,
    ended: bool,
    any_sent: bool,
    held_since: Option<Instant>,
    plays_until: Option<Instant>,
    samples: u64,
    pieces: VecDeque<Piece>,
    /// What of the piece that is heard has been told as spoken.
    told: Told,
}

/// Words are timed when all of a piece has come. What is heard before is told as soon as slow speech
/// would have come to it: who breaks off, or is interrupted, has said it.
#[derive(Debug, Default)]
struct Told {
    piece: String,
    /// Where the words that have not been told begin, in bytes and in ms of the speech.
    from: usize,
    from_ms: u64,
}

/// Runs until all has been spoken, or has failed. Aborted, it frees its connections.
pub(super) async fn speak(
    shared: Arc<Shared>,
    id: SpeechId,
    mut texts: mpsc::Receiver<Text>,
    events: mpsc::Sender<TtsEvent>,
) {
    let mut speaking = Speaking {
        shared,
        id,
        events,
        chunker: Chunker::default(),
        ended: false,
        any_sent: false,
        held_since: None,
        plays_until: None,
        samples: 0,
        pieces: VecDeque::new(),
        told: Told::default(),
    };
    let last = match speaking.run(&mut texts).await {
        Ok(()) => TtsEvent::End { id },
        Err(error) => TtsEvent::Error { id, error },
    };
    let _ = speaking.events.send(last).await;
}

impl Speaking {
    async fn run(&mut self, texts: &mut mpsc::Receiver<Text>) -> Result<(), TtsError> {
        loop {
            self.cut().await;
            if let Some(piece) = self.pieces.pop_front() {
                self.hear(piece, texts).await?;
                continue;
            }
            if self.ended {
                return Ok(());
            }
            let urgent = self.urgent_at();
            tokio::select! {
                biased;
                text = texts.recv() => self.take(text),
                () = clock::at(urgent), if urgent.is_some() => {}
            }
        }
    }

    fn take(&mut self, text: Option<Text>) {
        match text {
            Some(Text::More(text)) => {
                self.chunker.push(&text);
                if !self.chunker.is_blank() {
                    self.held_since.get_or_insert_with(Instant::now);
                }
            }
            Some(Text::End) | None => self.ended = true,
        }
    }

    /// When what waits must be sent at any word.
    fn urgent_at(&self) -> Option<Instant> {
        if !self.chunker.has_words() {
            return None;
        }
        if self.any_sent {
            self.plays_until.map(|end| end.checked_sub(RUNNING_OUT).unwrap_or(end))
        } else {
            self.held_since.map(|since| since + FIRST_HOLD)
        }
    }

    /// Asks for as many pieces as there are and may be.
    async fn cut(&mut self) {
        while self.pieces.len() < AHEAD {
            let urgent =
                self.pieces.is_empty() && self.urgent_at().is_some_and(|at| at <= Instant::now());
            let piece =
                if self.ended { self.chunker.take_rest() } else { self.chunker.take(urgent) };
            let Some(text) = piece else { return };
            self.any_sent = true;
            let characters = text.chars().count() as u64;
            let _ = self.events.send(TtsEvent::Usage { link: 0, characters }).await;
            let response = tokio::spawn(request(self.shared.clone(), text.clone()));
            self.pieces.push_back(Piece { text, response });
        }
    }

    /// Passes one piece's audio on, and asks for the next meanwhile.
    async fn hear(
        &mut self,
        mut piece: Piece,
        texts: &mut mpsc::Receiver<Text>,
    ) -> Result<(), TtsError> {
        let limit = self.shared.audio_timeout;
        self.told = Told { piece: piece.text.clone(), from: 0, from_ms: self.ms() };
        let mut retries = self.shared.retries;
        loop {
            let before = self.samples;
            let error = match self.hear_once(&mut piece, texts, limit).await {
                Ok(()) => break,
                Err(error) => error,
            };
            let may_help = matches!(
                error,
                TtsError::Unreachable(_) | TtsError::Interrupted(_) | TtsError::Timeout(_)
            );
            if self.samples > before || retries == 0 || !may_help {
                self.tell_by_time(self.ms()).await;
                return Err(error);
            }
            retries -= 1;
            tokio::time::sleep(RETRY).await;
            piece.response = tokio::spawn(request(self.shared.clone(), piece.text.clone()));
        }
        let all = self.told.piece.len();
        self.tell(all, self.ms()).await;
        Ok(())
    }

    /// Tells the piece's words up to this byte, which end by then.
    async fn tell(&mut self, until: usize, until_ms: u64) {
        let Told { piece, from, from_ms } = &self.told;
        let words = spread(&piece[*from..until], *from_ms, until_ms);
        if !words.is_empty() {
            let _ = self.events.send(TtsEvent::Alignment { id: self.id, words }).await;
        }
        (self.told.from, self.told.from_ms) = (until, until_ms);
    }

    /// Tells what even slow speech has said by then.
    async fn tell_by_time(&mut self, by_ms: u64) {
        let Told { piece, from, from_ms } = &self.told;
        let speed = f64::from(self.shared.parameters.speed.unwrap_or(1.0).clamp(0.25, 4.0));
        let rest = &piece[*from..];
        let at_usual_speed = by_ms.saturating_sub(*from_ms) as f64 * speed;
        // The last word is told with the piece's end.
        let said = estimated(rest, at_usual_speed as u64).min(last_word(rest.trim_end()));
        if said > 0 {
            let lasts = rest[..said].chars().count() as f64 * MS_PER_CHAR as f64 / speed;
            let until_ms = from_ms + lasts as u64;
            self.tell(from + said, until_ms).await;
        }
    }

    async fn hear_once(
        &mut self,
        piece: &mut Piece,
        texts: &mut mpsc::Receiver<Text>,
        limit: Duration,
    ) -> Result<(), TtsError> {
        let late = || TtsError::Timeout(limit.as_millis() as u64);
        let begun = Instant::now();
        let response = loop {
            tokio::select! {
                biased;
                text = texts.recv(), if !self.ended => {
                    self.take(text);
                    self.cut().await;
                }
                response = &mut piece.response => break response,
                () = sleep_until(begun + limit) => return Err(late()),
            }
        };
        let (response, lease) = response
            .map_err(|_| TtsError::Interrupted("the request was given up".into()))?
            .map_err(|failure| self.fault(failure))?;
        let mut body = response.bytes_stream();
        let (mut half, mut heard, mut last) = (None, false, begun);
        loop {
            let chunk = tokio::select! {
                biased;
                text = texts.recv(), if !self.ended => {
                    self.take(text);
                    self.cut().await;
                    continue;
                }
                chunk = timeout(limit.saturating_sub(last.elapsed()), body.next()) => chunk,
            };
            match chunk {
                Ok(Some(Ok(bytes))) => {
                    let samples = to_samples(&mut half, &bytes);
                    if !samples.is_empty() {
                        heard = true;
                        self.heard(samples).await;
                        last = Instant::now();
                    }
                }
                Ok(Some(Err(error))) => {
                    return Err(TtsError::Interrupted(Failure::from_reqwest(error).to_string()));
                }
                Ok(None) if heard => {
                    lease.ended();
                    return Ok(());
                }
                Ok(None) => {
                    return Err(TtsError::Interrupted("the answer has no audio".into()));
                }
                Err(_) if heard => {
                    let ms = limit.as_millis();
                    return Err(TtsError::Interrupted(format!("nothing came for {ms} ms")));
                }
                Err(_) => return Err(late()),
            }
        }
    }

    async fn heard(&mut self, samples: Vec<i16>) {
        let now = Instant::now();
        let count = samples.len() as u64;
        self.samples += count;
        let lasts = Duration::from_micros(count * 1_000_000 / u64::from(SAMPLE_RATE));
        self.plays_until = Some(self.plays_until.map_or(now, |until| until.max(now)) + lasts);
        let _ = self.events.send(TtsEvent::Audio { id: self.id, samples }).await;
        // What has come and is not due yet is timed by the piece's end, if that comes before.
        let until = self.plays_until.unwrap_or(now);
        let ahead = until.saturating_duration_since(now).saturating_sub(SOON);
        self.tell_by_time(self.ms().saturating_sub(ahead.as_millis() as u64)).await;
    }

    const fn ms(&self) -> u64 {
        self.samples * 1_000 / SAMPLE_RATE as u64
    }

    fn fault(&self, failure: Failure) -> TtsError {
        match failure {
            Failure::Status { status: status @ (401 | 403), .. } => {
                TtsError::Unauthorized { status }
            }
            Failure::Status { status, error, .. } => {
                let message = self.shared.endpoint.redact(&error.message);
                let message = format!("HTTP {status} {message}");
                if matches!(status, 408 | 409 | 425 | 429 | 500..) && !error.is_out_of_quota() {
                    TtsError::Unreachable(message)
                } else {
                    TtsError::Rejected(message)
                }
            }
            Failure::Network(reason) => TtsError::Unreachable(self.shared.endpoint.redact(&reason)),
        }
    }
}

async fn request(shared: Arc<Shared>, text: String) -> Result<(reqwest::Response, Lease), Failure> {
    let request = shared.connections.post(shared.endpoint.url(&["audio", "speech"]));
    shared.connections.send(request.json(&shared.parameters.body(&text))).await
}
