//! Callbacks that the application may replace at any time, also from within themselves.

use parking_lot::Mutex;

/// Holds at most one callback.
pub(crate) struct Callback<F> {
    slot: Mutex<Slot<F>>,
}

struct Slot<F> {
    callback: Option<F>,
    /// Grows with every `set`, so that a call does not put back what was replaced meanwhile.
    version: u64,
}

impl<F> Default for Callback<F> {
    fn default() -> Self {
        Self { slot: Mutex::new(Slot { callback: None, version: 0 }) }
    }
}

impl<F> Callback<F> {
    /// Replaces the callback.
    pub(crate) fn set(&self, callback: Option<F>) {
        let old = {
            let mut slot = self.slot.lock();
            slot.version += 1;
            std::mem::replace(&mut slot.callback, callback)
        };
        // What it captured may be anything: not dropped under the lock.
        drop(old);
    }

    /// Runs `call` with the callback, if there is one, without holding the lock.
    pub(crate) fn call(&self, call: impl FnOnce(&mut F)) {
        let (taken, version) = {
            let mut slot = self.slot.lock();
            (slot.callback.take(), slot.version)
        };
        let Some(mut callback) = taken else { return };
        call(&mut callback);
        let mut slot = self.slot.lock();
        if slot.version == version {
            slot.callback = Some(callback);
        }
    }
}
