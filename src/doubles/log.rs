//! What the doubles were asked, for tests to wait for and to look at.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::sync::watch;

/// More entries than this push the oldest out.
const MAX_ENTRIES: usize = 10_000;
/// Longer texts are cut to this many bytes.
const MAX_TEXT: usize = 64 << 10;
/// Recorded audio of one connection: 60 s at 16 kHz.
const MAX_SAMPLES: usize = 60 * 16_000;
/// Connections whose audio is kept.
const MAX_RECORDINGS: usize = 64;

/// One thing a double received or did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// `deepgram`, `openai`, `elevenlabs`.
    pub provider: &'static str,
    /// Names the connection or the request (see [`super::Context::next_connection`]).
    pub connection: u64,
    pub what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A WebSocket was accepted; `target` is path and query.
    Opened { target: String },
    /// A request or upgrade was refused with this HTTP status.
    Refused { status: u16 },
    /// A text message on a WebSocket.
    Text(String),
    /// An HTTP request; `target` is path and query.
    Request { target: String, body: String },
    /// The connection ended, whoever ended it.
    Closed,
}

#[derive(Debug)]
struct Shared {
    entries: Mutex<VecDeque<Entry>>,
    audio: Mutex<BTreeMap<u64, Vec<i16>>>,
    changed: watch::Sender<()>,
}

/// A bounded log; clones share it.
#[derive(Debug, Clone)]
pub struct Log(Arc<Shared>);

impl Default for Log {
    fn default() -> Self {
        Self(Arc::new(Shared {
            entries: Mutex::default(),
            audio: Mutex::default(),
            changed: watch::Sender::new(()),
        }))
    }
}

impl Log {
    pub fn push(&self, provider: &'static str, connection: u64, mut what: What) {
        if let What::Text(text) | What::Request { body: text, .. } = &mut what
            && text.len() > MAX_TEXT
        {
            text.truncate(text.floor_char_boundary(MAX_TEXT));
        }
        let mut entries = self.0.entries.lock();
        if entries.len() == MAX_ENTRIES {
            entries.pop_front();
        }
        entries.push_back(Entry { provider, connection, what });
        drop(entries);
        self.0.changed.send_replace(());
    }

    /// Keeps samples (mono s16) that a connection received.
    pub fn record(&self, connection: u64, samples: &[i16]) {
        let mut audio = self.0.audio.lock();
        if audio.len() == MAX_RECORDINGS && !audio.contains_key(&connection) {
            return;
        }
        let kept = audio.entry(connection).or_default();
        let room = MAX_SAMPLES - kept.len();
        kept.extend(&samples[..samples.len().min(room)]);
        drop(audio);
        self.0.changed.send_replace(());
    }

    /// All entries, oldest first.
    pub fn entries(&self) -> Vec<Entry> {
        self.0.entries.lock().iter().cloned().collect()
    }

    /// The text messages of a provider's WebSockets, oldest first.
    pub fn texts(&self, provider: &str) -> Vec<String> {
        let entries = self.0.entries.lock();
        let of_provider = entries.iter().filter(|entry| entry.provider == provider);
        let texts = of_provider.filter_map(|entry| match &entry.what {
            What::Text(text) => Some(text.clone()),
            _ => None,
        });
        texts.collect()
    }

    /// What [`Self::record`] kept of a connection.
    pub fn audio(&self, connection: u64) -> Vec<i16> {
        self.0.audio.lock().get(&connection).cloned().unwrap_or_default()
    }

    /// Waits until `found` finds something in the log. Bound it with a time-out.
    pub async fn wait_for<T>(&self, mut found: impl FnMut(&Self) -> Option<T>) -> T {
        let mut changed = self.0.changed.subscribe();
        loop {
            if let Some(it) = found(self) {
                return it;
            }
            if changed.changed().await.is_err() {
                // Not reachable: `self` holds the sender.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until there are `count` entries of this kind.
    pub async fn wait_for_count(&self, count: usize, mut is: impl FnMut(&Entry) -> bool) {
        let enough = |log: &Self| {
            let entries = log.0.entries.lock();
            (entries.iter().filter(|entry| is(entry)).count() >= count).then_some(())
        };
        self.wait_for(enough).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_entries_go_and_long_texts_are_cut() {
        let log = Log::default();
        for connection in 0..=MAX_ENTRIES as u64 {
            log.push("deepgram", connection, What::Closed);
        }
        assert_eq!(log.entries().len(), MAX_ENTRIES);
        assert_eq!(log.entries()[0].connection, 1);
        log.push("openai", 7, What::Text("ü".repeat(MAX_TEXT)));
        assert_eq!(log.texts("openai")[0].len(), MAX_TEXT);
    }
}
