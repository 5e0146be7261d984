//! Names looked up once for all connections to providers, so that no turn waits for a name server.
//!
//! The system's resolver tells no time to live: an answer is fresh for `FRESH`, then given out
//! while it is looked up anew in the background, and kept for the case that nobody answers any more.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::clock;

/// An answer younger than this is not looked up again.
const FRESH: Duration = Duration::from_mins(1);
/// One younger than this is given out at once, and looked up behind the back of who asked.
const STALE: Duration = Duration::from_mins(10);
/// An older one is given out only where the look-up fails.
const KEPT: Duration = Duration::from_hours(1);
/// Longest look-up.
const LOOKUP: Duration = Duration::from_secs(5);
const MAX_NAMES: usize = 256;
/// Addresses of one name that are kept.
const MAX_ADDRESSES: usize = 16;

type Addresses = Arc<[IpAddr]>;
type Looking = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;
type LookUp = Arc<dyn Fn(String) -> Looking + Send + Sync>;

#[derive(Debug)]
struct Entry {
    addresses: Addresses,
    at: Instant,
    refreshing: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Found {
    Now(Addresses),
    /// To be looked up by this caller, in the background.
    NowAndRefresh(Addresses),
    /// To be looked up first.
    Old(Addresses),
    Nothing,
}

/// What is known: pure.
#[derive(Debug, Default)]
struct Cache(HashMap<String, Entry>);

impl Cache {
    fn find(&mut self, name: &str, now: Instant) -> Found {
        let Some(entry) = self.0.get_mut(name) else { return Found::Nothing };
        let addresses = entry.addresses.clone();
        match now.saturating_duration_since(entry.at) {
            age if age < FRESH => Found::Now(addresses),
            age if age < STALE && std::mem::replace(&mut entry.refreshing, true) => {
                Found::Now(addresses)
            }
            age if age < STALE => Found::NowAndRefresh(addresses),
            age if age < KEPT => Found::Old(addresses),
            _ => Found::Nothing,
        }
    }

    fn keep(&mut self, name: &str, addresses: Addresses, now: Instant) {
        if self.0.len() >= MAX_NAMES && !self.0.contains_key(name) {
            let oldest = self.0.iter().min_by_key(|(_, entry)| entry.at);
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                self.0.remove(&oldest);
            }
        }
        self.0.insert(name.to_owned(), Entry { addresses, at: now, refreshing: false });
    }

    /// The look-up in the background came to nothing: the next caller may try again.
    fn not_refreshed(&mut self, name: &str) {
        if let Some(entry) = self.0.get_mut(name) {
            entry.refreshing = false;
        }
    }
}

/// Names and their addresses; clones share what is known.
#[derive(Clone)]
pub struct Names {
    cache: Arc<Mutex<Cache>>,
    look_up: LookUp,
}

impl std::fmt::Debug for Names {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Names").field("known", &self.cache.lock().0.len()).finish_non_exhaustive()
    }
}

impl Names {
    /// The process's names, by the system's resolver.
    pub fn shared() -> &'static Self {
        static SHARED: LazyLock<Names> = LazyLock::new(|| {
            Names::new(Arc::new(|name| {
                Box::pin(async move {
                    let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
                    Ok(found.map(|address| address.ip()).collect())
                })
            }))
        });
        &SHARED
    }

    fn new(look_up: LookUp) -> Self {
        Self { cache: Arc::default(), look_up }
    }

    /// All addresses of a name, in the resolver's order; at least one.
    pub async fn addresses(&self, name: &str) -> io::Result<Arc<[IpAddr]>> {
        let found = self.cache.lock().find(name, clock::now());
        match found {
            Found::Now(addresses) => Ok(addresses),
            Found::NowAndRefresh(addresses) => {
                let (this, name) = (self.clone(), name.to_owned());
                tokio::spawn(async move {
                    if this.ask(&name).await.is_err() {
                        this.cache.lock().not_refreshed(&name);
                    }
                });
                Ok(addresses)
            }
            Found::Old(addresses) => Ok(self.ask(name).await.unwrap_or(addresses)),
            Found::Nothing => self.ask(name).await,
        }
    }

    /// Nobody answered at these addresses: whoever asks next looks them up.
    pub fn doubt(&self, name: &str) {
        self.cache.lock().0.remove(name);
    }

    async fn ask(&self, name: &str) -> io::Result<Addresses> {
        let looking = (self.look_up)(name.to_owned());
        let mut found = tokio::time::timeout(LOOKUP, looking)
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no name server answers"))??;
        found.truncate(MAX_ADDRESSES);
        if found.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
        }
        let addresses: Addresses = found.into();
        self.cache.lock().keep(name, addresses.clone(), clock::now());
        Ok(addresses)
    }
}

/// For reqwest, which tries the addresses of both families side by side (RFC 8305).
impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let this = self.clone();
        Box::pin(async move {
            let addresses = this.addresses(name.as_str()).await?;
            let addresses: Vec<_> = addresses.iter().map(|ip| SocketAddr::new(*ip, 0)).collect();
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::*;

    fn ip(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    /// Each look-up brings the next address; from `down` on they fail.
    fn counting(down: u8) -> (Names, Arc<AtomicU8>) {
        let asked = Arc::new(AtomicU8::new(0));
        let count = asked.clone();
        let look_up = move |_| -> Looking {
            let nth = count.fetch_add(1, Ordering::SeqCst) + 1;
            Box::pin(async move {
                if nth < down {
                    Ok(vec![ip(nth)])
                } else {
                    Err(io::ErrorKind::HostUnreachable.into())
                }
            })
        };
        (Names::new(Arc::new(look_up)), asked)
    }

    async fn first(names: &Names) -> IpAddr {
        names.addresses("api.example").await.unwrap()[0]
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_is_looked_up_once_and_renewed_behind_the_back_of_who_asks() {
        let (names, asked) = counting(9);
        assert_eq!((first(&names).await, first(&names).await), (ip(1), ip(1)));
        tokio::time::advance(FRESH).await;
        assert_eq!((first(&names).await, first(&names).await), (ip(1), ip(1)), "nobody waits");
        tokio::task::yield_now().await;
        assert_eq!((first(&names).await, asked.load(Ordering::SeqCst)), (ip(2), 2));
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_answer_is_given_out_only_where_there_is_no_new_one() {
        let (names, _) = counting(3);
        assert_eq!(first(&names).await, ip(1));
        tokio::time::advance(STALE).await;
        assert_eq!(first(&names).await, ip(2));
        tokio::time::advance(STALE).await;
        assert_eq!(first(&names).await, ip(2), "the name server is down");
        tokio::time::advance(KEPT).await;
        assert!(names.addresses("api.example").await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_at_which_nobody_answers_are_looked_up_anew() {
        let (names, _) = counting(9);
        assert_eq!(first(&names).await, ip(1));
        names.doubt("api.example");
        assert_eq!(first(&names).await, ip(2));
    }

    #[test]
    fn the_oldest_name_makes_room() {
        let (mut cache, start) = (Cache::default(), clock::now());
        for nth in 0..=MAX_NAMES as u64 {
            cache.keep(&nth.to_string(), vec![ip(1)].into(), start + Duration::from_millis(nth));
        }
        assert_eq!((cache.0.len(), cache.find("0", start)), (MAX_NAMES, Found::Nothing));
    }
}
