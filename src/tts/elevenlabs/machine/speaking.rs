//! Speeches on their way: text out, audio in, the end.

use std::time::{Duration, Instant};

use super::{
    super::{
        proto,
        speech::{Context, Speech},
    },
    Action, Machine, Settings,
};
use crate::tts::{SpeechId, TtsError, TtsEvent, pcm::to_samples};

/// Longest text of one speech, in bytes: half an hour of speaking.
const MAX_SPEECH_BYTES: usize = 32_000;
/// Speeches that wait or speak at the same time.
const MAX_SPEECHES: usize = 32;

impl Machine {
    pub(super) fn find_or_add(&mut self, id: SpeechId) -> Option<usize> {
        if let Some(at) = self.speeches.iter().position(|speech| speech.id == id) {
            return Some(at);
        }
        // Ids grow, so this one has ended.
        if self.newest.is_some_and(|newest| id <= newest) {
            return None;
        }
        self.newest = Some(id);
        self.speeches.push(Speech::new(id));
        let at = self.speeches.len() - 1;
        if at >= MAX_SPEECHES {
            self.end(at, Err(TtsError::Rejected("too many speeches at once".into())));
            return None;
        }
        Some(at)
    }

    pub(super) fn speak(&mut self, id: SpeechId, text: &str, now: Instant) {
        let Some(at) = self.find_or_add(id) else { return };
        let speech = &mut self.speeches[at];
        if speech.finished {
            return;
        }
        speech.length += text.len();
        if speech.length > MAX_SPEECH_BYTES {
            let context = speech.context.take();
            self.end(at, Err(TtsError::Rejected("the text is too long".into())));
            self.abandon(context, now);
            return;
        }
        speech.waiting.push(text);
        if speech.has_text() {
            speech.held_since.get_or_insert(now);
        }
    }

    pub(super) fn cancel(&mut self, id: SpeechId, now: Instant) {
        self.newest = self.newest.max(Some(id));
        self.events.retain(|event| match event {
            TtsEvent::Audio { id: of, .. }
            | TtsEvent::Alignment { id: of, .. }
            | TtsEvent::End { id: of }
            | TtsEvent::Error { id: of, .. } => *of != id,
            TtsEvent::Usage { .. } => true,
        });
        if let Some(at) = self.speeches.iter().position(|speech| speech.id == id) {
            self.count_usage(at);
            let speech = self.speeches.remove(at);
            self.abandon(speech.context, now);
        }
    }

    pub(super) fn find_context(&self, name: Option<&str>) -> Option<usize> {
        let mut open = self.speeches.iter().enumerate().filter_map(|(at, speech)| {
            speech.context.as_ref().map(|context| (at, context.name.as_str()))
        });
        match name.filter(|_| self.settings.multi) {
            Some(name) => open.find(|(_, of)| *of == name).map(|(at, _)| at),
            // Without a name it is clear only where there is one.
            None if self.contexts() == 1 => open.next().map(|(at, _)| at),
            None => None,
        }
    }

    pub(super) fn hear(
        &mut self,
        at: usize,
        pcm: &[u8],
        chars: &[proto::AlignedChar],
        now: Instant,
    ) {
        let rate = u64::from(self.settings.sample_rate);
        let speech = &mut self.speeches[at];
        let base_ms = speech.samples * 1_000 / rate;
        let samples = to_samples(&mut speech.half_sample, pcm);
        if !samples.is_empty() {
            speech.samples += samples.len() as u64;
            speech.last_audio = Some(now);
            let lasts = Duration::from_micros(samples.len() as u64 * 1_000_000 / rate);
            speech.plays_until =
                Some(speech.plays_until.map_or(now, |until| until.max(now)) + lasts);
            if let Some(context) = &mut speech.context {
                context.heard = true;
            }
            self.events.push_back(TtsEvent::Audio { id: speech.id, samples });
        }
        let words = speech.aligner.push(&speech.sent, base_ms, chars);
        if !words.is_empty() {
            self.events.push_back(TtsEvent::Alignment { id: speech.id, words });
        }
    }

    /// The server told that nothing more comes in this context.
    pub(super) fn context_ended(&mut self, at: usize, now: Instant) {
        let speech = &mut self.speeches[at];
        let heard = speech.context.take().is_some_and(|context| context.heard);
        if !self.settings.multi {
            self.use_up(now);
        }
        self.rest(now);
        let speech = &mut self.speeches[at];
        if speech.is_all_sent() && heard {
            self.end(at, Ok(()));
        } else if !heard && speech.samples == 0 && !speech.sent.is_empty() {
            self.send_again(at, "the speech ended without audio", now);
        } else if speech.is_all_sent() {
            self.end(at, Err(TtsError::Interrupted("the speech ended early".into())));
        }
        // Otherwise the server closed a context that was idle; more text opens the next one.
    }

    /// Ends a speech; its context, if any, must be dealt with by the caller.
    pub(super) fn end(&mut self, at: usize, result: Result<(), TtsError>) {
        self.count_usage(at);
        let mut speech = self.speeches.remove(at);
        let id = speech.id;
        let last = match &result {
            Ok(()) => speech.aligner.finish(&speech.sent),
            Err(_) => speech.aligner.break_off(&speech.sent),
        };
        if let Some(word) = last {
            self.events.push_back(TtsEvent::Alignment { id, words: vec![word] });
        }
        self.events.push_back(match result {
            Ok(()) => TtsEvent::End { id },
            Err(error) => TtsEvent::Error { id, error },
        });
    }

    pub(super) fn count_usage(&mut self, at: usize) {
        let characters = std::mem::take(&mut self.speeches[at].characters);
        if characters > 0 {
            self.events.push_back(TtsEvent::Usage { link: 0, characters });
        }
    }

    /// Does all that can be done now.
    pub(super) fn advance(&mut self, now: Instant) {
        let mut at = 0;
        while at < self.speeches.len() {
            let speech = &self.speeches[at];
            if speech.is_all_sent() && speech.context.is_none() && speech.sent.is_empty() {
                self.end(at, Ok(()));
                continue;
            }
            if speech.is_all_sent() && speech.context.is_none() && speech.samples > 0 {
                self.end(at, Ok(()));
                continue;
            }
            self.send_text(at, now);
            self.close_when_heard(at);
            at += 1;
        }
        self.mind_connection(now);
    }

    pub(super) fn send_text(&mut self, at: usize, now: Instant) {
        loop {
            let room = self.has_room();
            let speech = &mut self.speeches[at];
            if !speech.has_text() || (speech.context.is_none() && !room) {
                return;
            }
            let urgent = speech.urgent_at().is_some_and(|at| at <= now);
            let piece = if speech.finished {
                speech.waiting.take_rest()
            } else {
                speech.waiting.take(urgent)
            };
            let Some(piece) = piece else { return };
            self.open_context(at, now);
            let multi = self.settings.multi;
            let speech = &mut self.speeches[at];
            let Some(context) = &mut speech.context else { return };
            context.spoken_since.get_or_insert(now);
            context.last_sent = now;
            speech.characters += piece.chars().count() as u64;
            speech.sent.push_str(&piece);
            let name = multi.then_some(context.name.as_str());
            self.actions.push_back(Action::Send(proto::text(name, &piece, true)));
        }
    }

    pub(super) fn open_context(&mut self, at: usize, now: Instant) {
        if self.speeches[at].context.is_some() {
            return;
        }
        self.contexts_named += 1;
        let speech = &mut self.speeches[at];
        let name = format!("s{}-{}", speech.id.0, self.contexts_named);
        speech.disconnected_since = None;
        // Of a context that ended in the middle of a sample.
        speech.half_sample = None;
        let Settings { multi, voice, ref schedule, ref dictionaries, .. } = self.settings;
        let init = proto::init(multi.then_some(name.as_str()), voice, schedule, dictionaries);
        self.actions.push_back(Action::Send(init));
        speech.context =
            Some(Context { name, last_sent: now, spoken_since: None, heard: false, closed: false });
        if let Some(current) = &mut self.current {
            current.used = true;
        }
    }

    /// Closes the context of a finished speech. Not before its first audio with
    /// `multi-stream-input`, where that would give none; a single stream is ended at once.
    pub(super) fn close_when_heard(&mut self, at: usize) {
        let multi = self.settings.multi;
        let speech = &mut self.speeches[at];
        let all_sent = speech.is_all_sent();
        let Some(context) = speech.context.as_mut().filter(|context| !context.closed) else {
            return;
        };
        if all_sent && (context.heard || !multi) {
            context.closed = true;
            self.actions.push_back(Action::Send(if multi {
                proto::close_context(&context.name)
            } else {
                proto::end_of_stream()
            }));
        }
    }
}
