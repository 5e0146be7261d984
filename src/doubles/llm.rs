//! What the doubles of all language models have in common: a script, answers in tokens, faults.
//!
//! They answer as scripted, then by themselves: with the number of the user's turns and the last one
//! quoted, so that it can be heard that the conversation was sent. Asked to go on with an answer
//! that broke off, they do.

use std::{
    collections::VecDeque,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::{Body, Bytes},
    http::header,
    response::{IntoResponse, Response},
};
use parking_lot::Mutex;
use serde_json::Value;

use super::{
    Context,
    faults::{Fault, Faults, Faulty},
    log::What,
};
use crate::{clock, llm::model::GO_ON};

/// What is answered, how fast, and what goes wrong:
///
/// ```
/// # use antiphon::doubles::{faults::Faulty, llm::LlmScript};
/// # use std::time::Duration;
/// // The first request is refused, the next two are answered; after that the double makes up its
/// // own answers.
/// let script = LlmScript::new()
///     .refuse(500)
///     .answer("Sure. For how many?")
///     .answer("A table for two at eight.")
///     .first_token(Duration::from_millis(80));
/// ```
#[derive(Debug, Clone)]
pub struct LlmScript {
    answers: VecDeque<Scripted>,
    rules: Vec<(String, String)>,
    first_token: Duration,
    token: Duration,
    null_choices: bool,
    begins_anew: bool,
    faults: Faults<usize>,
}

#[derive(Debug, Clone, PartialEq)]
enum Scripted {
    Text(String),
    /// Name and arguments; the answer to the results is the next in the script.
    Calls(Vec<(String, Value)>),
}

impl Default for LlmScript {
    fn default() -> Self {
        Self {
            answers: VecDeque::new(),
            rules: Vec::new(),
            first_token: Duration::from_millis(50),
            token: Duration::from_millis(10),
            null_choices: false,
            begins_anew: false,
            faults: Faults::default(),
        }
    }
}

impl Faulty for LlmScript {
    type At = usize;

    fn faults(&mut self) -> &mut Faults<usize> {
        &mut self.faults
    }
}

impl LlmScript {
    pub fn new() -> Self {
        Self::default()
    }

    /// The next answer.
    pub fn answer(mut self, text: &str) -> Self {
        self.answers.push_back(Scripted::Text(text.to_owned()));
        self
    }

    /// Instead of an answer the next request gets a call of this tool.
    pub fn call(self, name: &str, arguments: Value) -> Self {
        self.calls([(name, arguments)])
    }

    /// Instead of an answer the next request gets these calls at once.
    pub fn calls<'a>(mut self, calls: impl IntoIterator<Item = (&'a str, Value)>) -> Self {
        let calls = calls.into_iter().map(|(name, arguments)| (name.to_owned(), arguments));
        self.answers.push_back(Scripted::Calls(calls.collect()));
        self
    }

    /// The answer whenever the last message has `part` in it (case does not matter) and no
    /// scripted answer is left.
    pub fn answer_to(mut self, part: &str, text: &str) -> Self {
        self.rules.push((part.to_lowercase(), text.to_owned()));
        self
    }

    /// From the request to the first token (50 ms).
    pub const fn first_token(mut self, delay: Duration) -> Self {
        self.first_token = delay;
        self
    }

    /// From token to token (10 ms).
    pub const fn token(mut self, length: Duration) -> Self {
        self.token = length;
        self
    }

    /// OpenAI's chunk with the usage has null for its choices, as some servers write it.
    pub const fn null_choices(mut self) -> Self {
        self.null_choices = true;
        self
    }

    /// Asked to go on with an answer it begins it anew, as some models do.
    pub const fn begins_anew(mut self) -> Self {
        self.begins_anew = true;
        self
    }

    pub(super) const fn has_null_choices(&self) -> bool {
        self.null_choices
    }

    pub(super) fn take_fault(&mut self) -> Fault<usize> {
        self.faults.take()
    }

    fn take(&mut self, asked: &Asked, given: &mut Vec<String>) -> Scripted {
        if let Some(begun) = &asked.begun {
            let whole = given.iter().rev().find(|whole| whole.starts_with(begun.as_str()));
            if let Some(whole) = whole {
                let from = if self.begins_anew { 0 } else { begun.len() };
                return Scripted::Text(whole[from..].trim_start().to_owned());
            }
        }
        let answer = self.answers.pop_front().unwrap_or_else(|| Scripted::Text(self.own(asked)));
        if let Scripted::Text(text) = &answer {
            given.push(text.clone());
            let surplus = given.len().saturating_sub(64);
            given.drain(..surplus);
        }
        answer
    }

    fn own(&self, asked: &Asked) -> String {
        let last = asked.users.last().map(String::as_str).unwrap_or_default();
        let lower = last.to_lowercase();
        if let Some((_, answer)) = self.rules.iter().find(|(part, _)| lower.contains(part)) {
            return answer.clone();
        }
        if last.is_empty() {
            return "Hello. What can I do for you?".into();
        }
        let quoted = last.trim_end_matches(['.', '?', '!']);
        let turns = asked.users.len();
        format!("All right. That was turn {turns}, and you said: {quoted}. What next?")
    }
}

/// What a request asked, whatever its wire.
#[derive(Debug, Default)]
pub struct Asked {
    /// What the user said, turn by turn.
    users: Vec<String>,
    /// An answer that is to be gone on with.
    begun: Option<String>,
    /// Length of all texts, in bytes.
    length: usize,
}

impl Asked {
    /// From the texts of the conversation: whether it is the user's, and what was said.
    pub fn new(turns: impl IntoIterator<Item = (bool, String)>) -> Self {
        let mut asked = Self::default();
        let mut last_answer = None;
        for (is_user, text) in turns {
            asked.length += text.len();
            if is_user && text == GO_ON {
                asked.begun = last_answer.take();
            } else if is_user {
                asked.users.push(text);
            } else {
                last_answer = Some(text);
            }
        }
        asked
    }

    /// About how many tokens the prompt has.
    pub const fn tokens(&self) -> usize {
        self.length / 4 + self.users.len() * 4
    }
}

/// How one provider puts an answer on the wire.
pub trait Wire: Send + 'static {
    /// The body of an error.
    fn error(kind: &str, message: &str) -> Value;
    /// Before the first token.
    fn head(&mut self) -> String {
        String::new()
    }
    fn token(&mut self, text: &str) -> String;
    fn call(&mut self, nth: usize, name: &str, arguments: &Value) -> String;
    /// After the last; `tokens` of the answer. One event each.
    fn ending(&mut self, tokens: usize, has_calls: bool) -> Vec<String>;
    /// An error in the middle of the stream.
    fn failure(&mut self) -> String;
}

/// Served to all requests of one double.
#[derive(Debug, Clone)]
pub struct Served {
    pub script: Arc<Mutex<LlmScript>>,
    pub context: Context,
    pub provider: &'static str,
}

impl Served {
    pub fn new(script: LlmScript, context: &Context, provider: &'static str) -> Self {
        Self { script: Arc::new(Mutex::new(script)), context: context.clone(), provider }
    }

    /// Notes the request and takes its fault; `Err` is a refusal as scripted.
    pub async fn open<W: Wire>(
        &self,
        target: &str,
        body: &str,
    ) -> Result<(u64, Fault<usize>), Response> {
        let connection = self.context.next_connection();
        let what = What::Request { target: target.to_owned(), body: body.to_owned() };
        self.context.log.push(self.provider, connection, what);
        let fault = self.script.lock().take_fault();
        match fault {
            Fault::Refuse { status, retry_after } => {
                let kind = if status == 529 { "overloaded_error" } else { "server_error" };
                Err(self.refuse::<W>(connection, status, retry_after, kind, "Refused as scripted."))
            }
            Fault::Slow(delay) => {
                tokio::time::sleep(delay).await;
                Ok((connection, fault))
            }
            _ => Ok((connection, fault)),
        }
    }

    pub fn refuse<W: Wire>(
        &self,
        connection: u64,
        status: u16,
        retry_after: Option<u64>,
        kind: &str,
        message: &str,
    ) -> Response {
        self.context.log.push(self.provider, connection, What::Refused { status });
        super::faults::refusal(status, retry_after, W::error(kind, message))
    }

    /// The streamed answer.
    pub fn answer<W: Wire>(
        &self,
        connection: u64,
        fault: Fault<usize>,
        asked: &Asked,
        wire: W,
    ) -> Response {
        let mut script = self.script.lock();
        let scripted = script.take(asked, &mut self.context.given.lock());
        let answer = Answer::new(&scripted, &script, fault, wire);
        drop(script);
        let guard = Guard { context: self.context.clone(), provider: self.provider, connection };
        let stop = self.context.stop.clone().cancelled_owned();
        let stream = futures_util::stream::unfold(Some((answer, guard)), |state| async move {
            let (mut answer, guard) = state?;
            match answer.next().await {
                Step::Send(bytes) => Some((Ok(bytes), Some((answer, guard)))),
                Step::Break => Some((Err(io::Error::other("broken off as scripted")), None)),
                Step::End => None,
            }
        });
        let stream = futures_util::StreamExt::take_until(stream, stop);
        ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(stream)).into_response()
    }
}

/// Tells the log when a stream has ended, whoever ended it.
struct Guard {
    context: Context,
    provider: &'static str,
    connection: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.context.log.push(self.provider, self.connection, What::Closed);
    }
}

enum Step {
    Send(Bytes),
    Break,
    End,
}

/// One answer on its way.
struct Answer<W> {
    wire: W,
    /// What is still to be sent, ready for the wire.
    tokens: VecDeque<String>,
    calls: Vec<(String, Value)>,
    told: usize,
    count: usize,
    next_at: Instant,
    token: Duration,
    fault: Fault<usize>,
    /// What follows the tokens, once they are out.
    ending: Option<VecDeque<String>>,
    /// What of it is still to come, where its beginning has gone out of order.
    rest: Option<VecDeque<String>>,
}

impl<W: Wire> Answer<W> {
    fn new(scripted: &Scripted, script: &LlmScript, fault: Fault<usize>, wire: W) -> Self {
        let (tokens, calls) = match scripted {
            Scripted::Text(text) => (tokens_of(text), Vec::new()),
            Scripted::Calls(calls) => (Vec::new(), calls.clone()),
        };
        Self {
            wire,
            count: tokens.len(),
            tokens: tokens.into(),
            calls,
            told: 0,
            next_at: clock::now() + script.first_token,
            token: script.token,
            fault,
            ending: None,
            rest: None,
        }
    }

    async fn next(&mut self) -> Step {
        tokio::time::sleep_until(self.next_at.into()).await;
        let here = |at: usize| at.min(self.count) == self.told;
        match self.fault {
            Fault::Disconnect(at) if here(at) => return Step::Break,
            Fault::Stall(at) | Fault::Dead(at) if here(at) => std::future::pending().await,
            Fault::Malformed(at) if here(at) => {
                self.fault = Fault::None;
                return Step::Send("data: {\"id\": \"broken\", \"choices\": [{\"del\n\n".into());
            }
            Fault::Fail(at) if here(at) => {
                self.fault = Fault::None;
                self.tokens.clear();
                self.calls.clear();
                self.ending = Some(VecDeque::new());
                return Step::Send(self.wire.failure().into());
            }
            Fault::Disorder(at) if here(at) && self.tokens.len() > 1 => {
                // That it has finished overtakes its last words.
                self.fault = Fault::None;
                let mut ending = VecDeque::from(self.wire.ending(self.count, false));
                let first = ending.pop_front().unwrap_or_default();
                self.rest = Some(ending);
                return Step::Send(first.into());
            }
            Fault::Drip(delay) if self.told > 0 => {
                tokio::time::sleep(delay).await;
                self.next_at += delay;
            }
            _ => {}
        }
        let head =
            if self.told == 0 && self.ending.is_none() { self.wire.head() } else { String::new() };
        if let Some(token) = self.tokens.pop_front() {
            self.told += 1;
            self.next_at += self.token;
            return Step::Send((head + &self.wire.token(&token)).into());
        }
        if let Some(rest) = self.rest.take() {
            self.ending = Some(rest);
        }
        if self.ending.is_none() {
            let has_calls = !self.calls.is_empty();
            let mut ending = VecDeque::new();
            for (nth, (name, arguments)) in self.calls.drain(..).enumerate() {
                ending.push_back(self.wire.call(nth, &name, &arguments));
            }
            ending.extend(self.wire.ending(self.count, has_calls));
            if !head.is_empty() {
                ending.push_front(head);
            }
            self.ending = Some(ending);
        }
        match self.ending.as_mut().and_then(VecDeque::pop_front) {
            Some(event) => Step::Send(event.into()),
            None => Step::End,
        }
    }
}

/// As models do: the space goes with the word after it.
fn tokens_of(text: &str) -> Vec<String> {
    let mut tokens: Vec<String> = Vec::new();
    for piece in text.split_inclusive(char::is_whitespace) {
        let word = piece.trim_end();
        match tokens.last_mut() {
            Some(space) if space.trim().is_empty() => space.push_str(word),
            _ => tokens.push(word.to_owned()),
        }
        if piece.len() > word.len() {
            tokens.push(piece[word.len()..].to_owned());
        }
    }
    tokens
}

/// `data: …`
pub fn data(value: &Value) -> String {
    format!("data: {value}\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(turns: &[(bool, &str)]) -> Asked {
        Asked::new(turns.iter().map(|(is_user, text)| (*is_user, (*text).to_owned())))
    }

    fn text(text: &str) -> Scripted {
        Scripted::Text(text.into())
    }

    #[test]
    fn answers_come_in_order_then_by_rule_then_from_the_conversation() {
        let mut script = LlmScript::new().answer("One.").answer_to("WEATHER", "Sunny.");
        let mut given = Vec::new();
        let mut take = |turns: &[(bool, &str)]| script.take(&asked(turns), &mut given);
        assert_eq!(take(&[(true, "weather?")]), text("One."));
        assert_eq!(take(&[(true, "The weather?")]), text("Sunny."));
        let own = "All right. That was turn 2, and you said: Book a table. What next?";
        assert_eq!(take(&[(true, "Hi"), (true, "Book a table.")]), text(own));
        assert_eq!(take(&[]), text("Hello. What can I do for you?"));
    }

    #[test]
    fn an_answer_that_broke_off_is_gone_on_with() {
        let mut script = LlmScript::new().answer("We are open from nine.");
        let mut given = Vec::new();
        script.take(&asked(&[(true, "When?")]), &mut given);
        let broken = asked(&[(true, "When?"), (false, "We are"), (true, GO_ON)]);
        assert_eq!(script.take(&broken, &mut given), text("open from nine."));
        let mut script = script.begins_anew();
        assert_eq!(script.take(&broken, &mut given), text("We are open from nine."));
    }

    #[test]
    fn tokens_concatenate_to_the_answer() {
        for text in ["Sure. I can  help.", " x\ny ", ""] {
            assert_eq!(tokens_of(text).concat(), text);
        }
    }
}
