//! Several models in order: when one fails, the next answers; when one fails in the middle of an
//! answer, the next goes on with it.

use std::{fmt::Debug, pin::pin, sync::Arc, time::Duration};

use metrics::counter;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    GenerateRequest, Llm, LlmError, LlmEvent,
    model::{Ask, Model, Patience, Piece, TokenUsage, ToolCall},
    seam::{Seam, WholeWords},
};
use crate::{
    clock,
    context::routing::{self, Size},
    net::breaker::{self, Health, Severity},
    telemetry::metrics as names,
};

/// Pieces between a model and the chain.
const QUEUE: usize = 64;

/// One model of the chain and how it has been doing.
#[derive(Debug, Clone)]
struct Link {
    model: Arc<dyn Model>,
    health: Arc<Health>,
}

/// How long a model that others stand behind is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Haste {
    /// Until the first text.
    pub first_token: Duration,
    /// Within an answer.
    pub stall: Duration,
}

impl Default for Haste {
    fn default() -> Self {
        Self { first_token: Duration::from_secs(2), stall: Duration::from_millis(1_200) }
    }
}

/// What has become of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answer {
    /// All that was told.
    pub text: String,
    pub calls: Vec<ToolCall>,
}

/// What a chain tells while it answers.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    Text(String),
    /// As [`LlmEvent::Working`].
    Working,
    /// By this link of the chain, also of an answer that broke off or was cut short.
    Usage {
        link: u8,
        usage: TokenUsage,
        /// By the length of the texts: the provider has not told.
        estimated: bool,
    },
}

/// Models to be asked in order, shared by all rooms of an agent.
#[derive(Debug, Clone)]
pub struct Chain {
    links: Arc<[Link]>,
    haste: Haste,
    /// Asked first where it is enough.
    small: Option<Arc<Chain>>,
    /// What its first link is called in [`Told::Usage`].
    first_link: u8,
}

impl Chain {
    /// `models`: the preferred one first; at least one.
    pub fn new(models: Vec<Arc<dyn Model>>, haste: Haste) -> Option<Self> {
        let links = models.into_iter().map(|model| Link { model, health: Arc::default() });
        let links: Arc<[Link]> = links.collect();
        (!links.is_empty()).then_some(Self { links, haste, small: None, first_link: 0 })
    }

    /// The same, with models for simple turns (see [`routing`]); should they fail, this answers.
    pub fn with_small(mut self, mut small: Self) -> Self {
        small.first_link = self.link(self.links.len());
        self.small = Some(Arc::new(small));
        self
    }

    /// Provider and model of a link.
    pub fn name(&self, link: usize) -> (&'static str, &str) {
        self.links.get(link).map_or(("", ""), |link| (link.model.provider(), link.model.model()))
    }

    /// What the link is called in [`Told::Usage`].
    fn link(&self, at: usize) -> u8 {
        self.first_link.saturating_add(u8::try_from(at).unwrap_or(u8::MAX))
    }

    /// Opens connections to those that are most likely to be asked.
    pub async fn prewarm(&self) {
        let small = self.small.iter().flat_map(|small| small.links.iter().take(1));
        let warm = self.links.iter().take(2).chain(small).map(|link| link.model.prewarm());
        futures_util::future::join_all(warm).await;
    }

    /// Answers once, by whichever model can. Everything told goes to `out` in order; nothing is
    /// told twice. Dropping the future frees the connection at once.
    pub async fn answer(&self, ask: &Ask, out: &mpsc::Sender<Told>) -> Result<Answer, LlmError> {
        let mut answer = Answer::default();
        if let Some(small) = &self.small {
            let size = routing::size(&ask.turns);
            counter!(names::LLM_ROUTED_TOTAL, "size" => size.as_str()).increment(1);
            if size == Size::Small && small.go_on(ask, &mut answer, out).await.is_ok() {
                return Ok(answer);
            }
        }
        self.go_on(ask, &mut answer, out).await?;
        Ok(answer)
    }

    /// Answers, or goes on with an answer that others have begun.
    async fn go_on(
        &self,
        ask: &Ask,
        answer: &mut Answer,
        out: &mpsc::Sender<Told>,
    ) -> Result<(), LlmError> {
        let mut attempts =
            breaker::order(self.links.iter().map(|link| &*link.health), clock::now());
        let ways = attempts.len();
        // What one model began only it can go on with, if there is no other.
        if ways == 1 {
            attempts.push(attempts[0]);
        }
        let mut failure = LlmError::Unreachable("there is no model".into());
        for (nth, at) in attempts.into_iter().enumerate() {
            if nth == ways && answer.text.is_empty() {
                break;
            }
            let link = &self.links[at];
            let patience = if nth + 1 < ways {
                let Haste { first_token, stall } = self.haste;
                Patience { first_token, retry: Duration::ZERO, stall }
            } else {
                Patience::OWN
            };
            match self.attempt(at, ask, patience, answer, out).await {
                Ok(()) => {
                    link.health.succeeded();
                    return Ok(());
                }
                Err(error) => {
                    if let Some(severity) = severity(&error) {
                        link.health.failed(severity, clock::now());
                    }
                    let (provider, model) = self.name(at);
                    tracing::warn!(provider, model, %error, "a model has failed");
                    counter!(names::PROVIDER_ERRORS_TOTAL, "part" => "llm", "provider" => provider)
                        .increment(1);
                    failure = error;
                }
            }
        }
        Err(failure)
    }

    /// One model's share of an answer.
    async fn attempt(
        &self,
        at: usize,
        ask: &Ask,
        patience: Patience,
        answer: &mut Answer,
        out: &mpsc::Sender<Told>,
    ) -> Result<(), LlmError> {
        let ask = ask.continued(&answer.text);
        let mut meter = Meter { link: self.link(at), ask: &ask, written: 0, told: false, out };
        let (sender, mut pieces) = mpsc::channel(QUEUE);
        let mut streaming = pin!(self.links[at].model.stream(&ask, patience, sender));
        let (mut seam, mut words) = (Seam::new(&answer.text), WholeWords::default());
        answer.calls.clear();
        let mut result = None;
        loop {
            let piece = tokio::select! {
                biased;
                piece = pieces.recv() => piece,
                ended = &mut streaming, if result.is_none() => {
                    result = Some(ended);
                    continue;
                }
            };
            match piece {
                Some(Piece::Text(text)) => {
                    meter.written += text.len();
                    let text = words.push(&seam.push(&text));
                    tell(text, answer, out).await;
                }
                Some(Piece::Call(call)) => {
                    meter.written += call.arguments.len();
                    answer.calls.push(call);
                }
                Some(Piece::Usage(usage)) => {
                    meter.told = true;
                    let told = Told::Usage { link: meter.link, usage, estimated: false };
                    // Nobody listening is told by the cancelled token.
                    let _ = out.send(told).await;
                }
                None => break,
            }
        }
        let result = match result {
            Some(result) => result,
            None => streaming.await,
        };
        if result.is_err() && meter.written == 0 {
            // A request that brought nothing is not charged for.
            meter.told = true;
        }
        if result.is_ok() {
            let mut text = words.push(&seam.finish());
            text.push_str(&words.finish());
            tell(text, answer, out).await;
        }
        result
    }
}

/// What one attempt uses. Providers tell at the end; one that is cut short, or breaks off, has used
/// something all the same, which is then estimated.
struct Meter<'a> {
    link: u8,
    ask: &'a Ask,
    /// Bytes of text that the model has written.
    written: usize,
    told: bool,
    out: &'a mpsc::Sender<Told>,
}

impl Drop for Meter<'_> {
    fn drop(&mut self) {
        if !self.told {
            let usage = TokenUsage {
                input: tokens(self.ask.bytes()),
                cached: 0,
                output: tokens(self.written),
            };
            let told = Told::Usage { link: self.link, usage, estimated: true };
            // A full queue is that of a listener who has gone.
            let _ = self.out.try_send(told);
        }
    }
}

/// About four bytes make a token, in most languages and with most tokenizers.
const fn tokens(bytes: usize) -> u64 {
    bytes.div_ceil(4) as u64
}

async fn tell(text: String, answer: &mut Answer, out: &mpsc::Sender<Told>) {
    if !text.is_empty() {
        answer.text.push_str(&text);
        let _ = out.send(Told::Text(text)).await;
    }
}

/// A request that this provider does not take says nothing about its health.
fn severity(error: &LlmError) -> Option<Severity> {
    match error {
        LlmError::Unauthorized { .. } => Some(Severity::Refused),
        LlmError::Rejected { .. } => None,
        LlmError::Unreachable(_) | LlmError::Interrupted(_) | LlmError::Timeout(_) => {
            Some(Severity::Passing)
        }
    }
}

#[async_trait::async_trait]
impl Llm for Chain {
    fn provider(&self) -> &'static str {
        self.name(0).0
    }

    fn model(&self) -> &str {
        self.name(0).1
    }

    fn name_of(&self, link: u8) -> (&str, &str) {
        match &self.small {
            Some(small) if link >= small.first_link => small.name((link - small.first_link).into()),
            _ => self.name(link.into()),
        }
    }

    async fn prewarm(&self) {
        Self::prewarm(self).await;
    }

    async fn generate(
        &self,
        request: GenerateRequest,
        events: mpsc::Sender<LlmEvent>,
        cancel: CancellationToken,
    ) {
        let ask = Ask::new(&request.messages);
        let (sender, told) = mpsc::channel(QUEUE);
        let answering = async {
            let answer = self.answer(&ask, &sender).await;
            drop(sender);
            answer
        };
        match tell_all(answering, told, &events, &cancel).await {
            None => {}
            Some(Ok(_)) => _ = events.send(LlmEvent::End).await,
            Some(Err(error)) => _ = events.send(LlmEvent::Error(error)).await,
        }
    }
}

/// Runs `answering` and passes on what it tells, as a session hears it. `None`: it was cancelled,
/// which frees the connection at once; what it has used is told all the same.
pub(crate) async fn tell_all<T>(
    answering: impl Future<Output = T>,
    mut told: mpsc::Receiver<Told>,
    events: &mpsc::Sender<LlmEvent>,
    cancel: &CancellationToken,
) -> Option<T> {
    let outcome = {
        let both = async { tokio::join!(answering, forward(&mut told, events)) };
        tokio::select! {
            biased;
            () = cancel.cancelled() => None,
            (outcome, ()) = both => Some(outcome),
        }
    };
    while let Ok(told) = told.try_recv() {
        if matches!(told, Told::Usage { .. }) {
            let _ = events.send(event(told)).await;
        }
    }
    outcome
}

async fn forward(told: &mut mpsc::Receiver<Told>, events: &mpsc::Sender<LlmEvent>) {
    while let Some(told) = told.recv().await {
        // Nobody listening is an answer as well.
        let _ = events.send(event(told)).await;
    }
}

fn event(told: Told) -> LlmEvent {
    match told {
        Told::Text(text) => LlmEvent::Text(text),
        Told::Working => LlmEvent::Working,
        Told::Usage { link, usage, estimated } => LlmEvent::Usage {
            link,
            input_tokens: usage.input,
            cached_tokens: usage.cached,
            output_tokens: usage.output,
            estimated,
        },
    }
}

#[cfg(test)]
mod tests;
