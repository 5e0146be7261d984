//! The keys of a room: a ring for each participant, or one that all share.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use rtc_audio::frame_crypto::{Derivation, KeySet};

use super::frame_cryptor::{KeyDerivationAlgorithm, KeyProviderOptions};

/// Keys of a ring when the options do not say.
const RING: usize = 16;
/// The key index of a frame is a byte.
const MOST_KEYS: usize = 256;
/// Ratcheting takes two derivations a step, so that it needs an end.
const MOST_STEPS: usize = 64;

/// See the [module](self). Deriving a key takes tens of milliseconds: it happens in the caller of
/// whatever changes a key, and outside the lock.
pub(crate) struct KeyStore {
    options: KeyProviderOptions,
    derivation: Derivation,
    rings: Mutex<Rings>,
}

#[derive(Default)]
struct Rings {
    shared: Option<Ring>,
    participants: HashMap<String, Ring>,
    server_trailer: Vec<u8>,
    /// Grows with every change of a key.
    version: u64,
}

#[derive(Clone)]
struct Ring {
    slots: Vec<Option<Slot>>,
    current: usize,
}

/// A key, and those that ratcheting makes of it, as far as somebody needed them.
#[derive(Clone)]
struct Slot {
    keys: Arc<KeySet>,
    next: Arc<Mutex<Vec<Arc<KeySet>>>>,
}

/// A key as it was found.
pub(crate) struct Found {
    pub(crate) keys: Arc<KeySet>,
    /// Of the store, when it was found.
    pub(crate) version: u64,
    next: Arc<Mutex<Vec<Arc<KeySet>>>>,
}

/// What a search among ratcheted keys gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Search {
    /// A later key fits; it is the current one now.
    Ratcheted,
    /// None of the window fits.
    Nothing,
    /// None of those at hand fits, and the others have yet to be derived.
    NotDerived,
}

impl Slot {
    fn new(keys: KeySet) -> Self {
        Self { keys: Arc::new(keys), next: Arc::default() }
    }
}

impl Ring {
    fn new(size: i32) -> Self {
        let size = usize::try_from(size).ok().filter(|size| *size > 0).unwrap_or(RING);
        Self { slots: vec![None; size.min(MOST_KEYS)], current: 0 }
    }

    /// A negative index stands for the current key.
    fn slot(&self, index: i32) -> Option<&Slot> {
        let index = usize::try_from(index).unwrap_or(self.current);
        self.slots.get(index)?.as_ref()
    }

    fn set(&mut self, index: i32, slot: Slot) {
        if let Ok(index) = usize::try_from(index) {
            self.current = index % self.slots.len().max(1);
        }
        if let Some(place) = self.slots.get_mut(self.current) {
            *place = Some(slot);
        }
    }
}

impl KeyStore {
    pub(crate) fn new(options: KeyProviderOptions) -> Self {
        let derivation = match options.key_derivation_algorithm {
            KeyDerivationAlgorithm::PBKDF2 => Derivation::Pbkdf2,
            KeyDerivationAlgorithm::HKDF => Derivation::Hkdf,
        };
        Self { options, derivation, rings: Mutex::default() }
    }

    fn derive(&self, secret: &[u8]) -> Option<Slot> {
        let keys = KeySet::derive(secret, &self.options.ratchet_salt, self.derivation);
        keys.map_err(|error| log::error!("a key was not derived: {error}")).ok().map(Slot::new)
    }

    fn ratchet(&self, keys: &KeySet) -> Option<KeySet> {
        let next = keys.ratchet(&self.options.ratchet_salt, self.derivation);
        next.map_err(|error| log::error!("a key was not ratcheted: {error}")).ok()
    }

    /// Failures in a row before a key counts as wrong; none: never.
    pub(crate) fn tolerance(&self) -> Option<u32> {
        u32::try_from(self.options.failure_tolerance).ok()
    }

    fn window(&self) -> usize {
        usize::try_from(self.options.ratchet_window_size).unwrap_or(0).min(MOST_STEPS)
    }

    pub(crate) fn set_shared(&self, index: i32, secret: &[u8]) -> bool {
        if !self.options.shared_key {
            return false;
        }
        let Some(slot) = self.derive(secret) else { return false };
        self.put_shared(index, &slot);
        true
    }

    fn put_shared(&self, index: i32, slot: &Slot) {
        let mut rings = self.rings.lock();
        rings.version += 1;
        let size = self.options.key_ring_size;
        rings.shared.get_or_insert_with(|| Ring::new(size)).set(index, slot.clone());
        for ring in rings.participants.values_mut() {
            ring.set(index, slot.clone());
        }
    }

    pub(crate) fn set(&self, participant: String, index: i32, secret: &[u8]) -> bool {
        let Some(slot) = self.derive(secret) else { return false };
        self.put(participant, index, slot);
        true
    }

    fn put(&self, participant: String, index: i32, slot: Slot) {
        let mut rings = self.rings.lock();
        rings.version += 1;
        let rings = &mut *rings;
        let shared = rings.shared.as_ref().filter(|_| self.options.shared_key);
        let ring = rings.participants.entry(participant);
        ring.or_insert_with(|| {
            shared.map_or_else(|| Ring::new(self.options.key_ring_size), Ring::clone)
        })
        .set(index, slot);
    }

    /// Makes the next shared key the current one; gives its secret.
    pub(crate) fn ratchet_shared(&self, index: i32) -> Option<Vec<u8>> {
        let keys = self.rings.lock().shared.as_ref()?.slot(index).map(|s| Arc::clone(&s.keys))?;
        let slot = Slot::new(self.ratchet(&keys)?);
        self.put_shared(index, &slot);
        Some(slot.keys.secret().to_vec())
    }

    /// Makes the participant's next key the current one; gives its secret.
    pub(crate) fn ratchet_own(&self, participant: String, index: i32) -> Option<Vec<u8>> {
        let keys = self.own(&participant, index)?;
        let slot = Slot::new(self.ratchet(&keys)?);
        let secret = slot.keys.secret().to_vec();
        self.put(participant, index, slot);
        Some(secret)
    }

    pub(crate) fn shared_secret(&self, index: i32) -> Option<Vec<u8>> {
        let rings = self.rings.lock();
        Some(rings.shared.as_ref()?.slot(index)?.keys.secret().to_vec())
    }

    pub(crate) fn own_secret(&self, participant: &str, index: i32) -> Option<Vec<u8>> {
        self.own(participant, index).map(|keys| keys.secret().to_vec())
    }

    fn own(&self, participant: &str, index: i32) -> Option<Arc<KeySet>> {
        let rings = self.rings.lock();
        Some(Arc::clone(&rings.participants.get(participant)?.slot(index)?.keys))
    }

    /// The key to use with a participant: its own, else the shared one where keys are shared.
    pub(crate) fn find(&self, participant: &str, index: i32) -> Option<Found> {
        let rings = self.rings.lock();
        let own = rings.participants.get(participant);
        let ring = if self.options.shared_key {
            let shared = rings.shared.as_ref()?;
            own.unwrap_or(shared)
        } else {
            own?
        };
        let slot = ring.slot(index)?;
        Some(Found {
            keys: Arc::clone(&slot.keys),
            version: rings.version,
            next: Arc::clone(&slot.next),
        })
    }

    /// Looks for a later key that `fits`, among those that ratcheting makes of the one `found`
    /// within the window, and makes it the participant's. With `derive` those that are not at hand
    /// are made (tens of milliseconds each) and kept, so that it happens once a key.
    pub(crate) fn search(
        &self,
        participant: &str,
        index: i32,
        found: &Found,
        derive: bool,
        mut fits: impl FnMut(&KeySet) -> bool,
    ) -> Search {
        for step in 0..self.window() {
            let keys = if derive {
                let mut next = found.next.lock();
                if let Some(keys) = next.get(step) {
                    Arc::clone(keys)
                } else {
                    let last = next.last().unwrap_or(&found.keys);
                    let Some(keys) = self.ratchet(last).map(Arc::new) else {
                        return Search::Nothing;
                    };
                    next.push(Arc::clone(&keys));
                    keys
                }
            } else {
                // Held while others are derived: not worth waiting for.
                let Some(next) = found.next.try_lock() else { return Search::NotDerived };
                let Some(keys) = next.get(step) else { return Search::NotDerived };
                Arc::clone(keys)
            };
            if fits(&keys) {
                let rest = found.next.lock().get(step + 1..).unwrap_or_default().to_vec();
                let slot = Slot { keys, next: Arc::new(Mutex::new(rest)) };
                self.replace(participant, index, found, slot);
                return Search::Ratcheted;
            }
        }
        Search::Nothing
    }

    /// Puts a later key in the place of the one `found`, unless another was set meanwhile.
    fn replace(&self, participant: &str, index: i32, found: &Found, slot: Slot) {
        let still = self.find(participant, index);
        if still.is_some_and(|still| Arc::ptr_eq(&still.keys, &found.keys)) {
            self.put(participant.to_owned(), index, slot);
        }
    }

    pub(crate) fn set_server_trailer(&self, trailer: Vec<u8>) {
        self.rings.lock().server_trailer = trailer;
    }

    /// The frame without the trailer that marks the server's own frames, which are in clear.
    pub(crate) fn strip_server_trailer<'a>(&self, frame: &'a [u8]) -> Option<&'a [u8]> {
        let rings = self.rings.lock();
        let trailer = rings.server_trailer.as_slice();
        if trailer.is_empty() { None } else { frame.strip_suffix(trailer) }
    }
}

impl fmt::Debug for KeyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyStore").field("options", &self.options).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(shared_key: bool, ratchet_window_size: i32) -> KeyStore {
        KeyStore::new(KeyProviderOptions {
            shared_key,
            ratchet_window_size,
            ratchet_salt: b"salt".to_vec(),
            failure_tolerance: -1,
            key_ring_size: 4,
            key_derivation_algorithm: KeyDerivationAlgorithm::HKDF,
        })
    }

    fn secret(store: &KeyStore, participant: &str, index: i32) -> Option<Vec<u8>> {
        store.find(participant, index).map(|found| found.keys.secret().to_vec())
    }

    #[test]
    fn a_shared_key_is_everybodys() {
        let store = store(true, 0);
        assert!(secret(&store, "ann", 0).is_none());
        assert!(store.set_shared(0, b"one"));
        assert_eq!(secret(&store, "ann", 0).as_deref(), Some(&b"one"[..]));
        assert_eq!(secret(&store, "ben", -1).as_deref(), Some(&b"one"[..]));
        assert!(secret(&store, "ben", 1).is_none());
        assert!(secret(&store, "ben", 99).is_none());
        assert_eq!(store.shared_secret(0).as_deref(), Some(&b"one"[..]));
    }

    #[test]
    fn without_sharing_each_has_its_own() {
        let store = store(false, 0);
        assert!(!store.set_shared(0, b"one"));
        assert!(store.set("ann".into(), 2, b"hers"));
        assert_eq!(secret(&store, "ann", 2).as_deref(), Some(&b"hers"[..]));
        assert!(secret(&store, "ben", 2).is_none());
        assert_eq!(store.own_secret("ann", 2).as_deref(), Some(&b"hers"[..]));
    }

    #[test]
    fn an_index_beyond_the_ring_goes_round() {
        let store = store(false, 0);
        assert!(store.set("ann".into(), 5, b"hers"));
        assert_eq!(secret(&store, "ann", 1).as_deref(), Some(&b"hers"[..]));
    }

    #[test]
    fn ratcheting_leads_to_the_same_key_on_both_sides() {
        let (ours, theirs) = (store(true, 4), store(true, 4));
        for store in [&ours, &theirs] {
            store.set_shared(0, b"one");
        }
        theirs.ratchet_shared(0).unwrap();
        let next = theirs.ratchet_shared(0).unwrap();
        assert_eq!(theirs.shared_secret(0).as_ref(), Some(&next));

        let found = ours.find("ann", 0).unwrap();
        let fits = |keys: &KeySet| keys.secret() == next;
        assert_eq!(ours.search("ann", 0, &found, false, fits), Search::NotDerived);
        assert_eq!(ours.search("ann", 0, &found, true, fits), Search::Ratcheted);
        assert_eq!(secret(&ours, "ann", 0), Some(next));
        assert_eq!(secret(&ours, "ben", 0).as_deref(), Some(&b"one"[..]), "others ratchet alone");
    }

    #[test]
    fn a_search_in_vain_changes_nothing_and_is_quick_the_next_time() {
        let store = store(true, 3);
        store.set_shared(0, b"one");
        let found = store.find("ann", 0).unwrap();
        let mut tried = 0;
        assert_eq!(store.search("ann", 0, &found, true, |_| false), Search::Nothing);
        let again = store.search("ann", 0, &found, false, |_| {
            tried += 1;
            false
        });
        assert_eq!((again, tried), (Search::Nothing, 3));
        assert_eq!(secret(&store, "ann", 0).as_deref(), Some(&b"one"[..]));
    }

    #[test]
    fn a_key_set_during_a_search_stays() {
        let store = store(true, 3);
        store.set_shared(0, b"one");
        let found = store.find("ann", 0).unwrap();
        store.set_shared(0, b"two");
        assert!(store.find("ann", 0).unwrap().version > found.version);
        assert_eq!(store.search("ann", 0, &found, true, |_| true), Search::Ratcheted);
        assert_eq!(secret(&store, "ann", 0).as_deref(), Some(&b"two"[..]));
    }

    #[test]
    fn nothing_of_a_key_is_shown() {
        let store = store(true, 0);
        store.set_shared(0, b"hunter2");
        assert!(!format!("{store:?}").contains("hunter2"));
    }
}
