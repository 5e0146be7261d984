//! Tells the application the state of an encryption: each change once, in their order, and off the
//! thread that saw it.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use super::frame_cryptor::{EncryptionState, OnStateChange};
use crate::engine::callback::Callback;

/// Changes that wait for a slow application; the oldest goes first.
const MOST: usize = 16;

pub(crate) struct Reporter {
    participant: String,
    callback: Callback<OnStateChange>,
    state: Mutex<State>,
}

struct State {
    last: EncryptionState,
    waiting: VecDeque<EncryptionState>,
    telling: bool,
}

impl Reporter {
    pub(crate) fn new(participant: String) -> Arc<Self> {
        let state = State { last: EncryptionState::New, waiting: VecDeque::new(), telling: false };
        Arc::new(Self { participant, callback: Callback::default(), state: Mutex::new(state) })
    }

    pub(crate) fn set(&self, callback: Option<OnStateChange>) {
        self.callback.set(callback);
    }

    pub(crate) fn report(self: &Arc<Self>, new: EncryptionState) {
        let mut state = self.state.lock();
        if state.last == new {
            return;
        }
        let Ok(runtime) = crate::engine::runtime() else { return };
        state.last = new;
        if state.waiting.len() >= MOST {
            state.waiting.pop_front();
        }
        state.waiting.push_back(new);
        if !std::mem::replace(&mut state.telling, true) {
            let reporter = Arc::clone(self);
            runtime.spawn(async move { reporter.tell() });
        }
    }

    fn tell(&self) {
        loop {
            let next = {
                let mut state = self.state.lock();
                let next = state.waiting.pop_front();
                state.telling = next.is_some();
                next
            };
            let Some(next) = next else { return };
            self.callback.call(|f| f(self.participant.clone(), next));
        }
    }
}
