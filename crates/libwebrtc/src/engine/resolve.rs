//! Names of STUN and TURN servers to addresses, once for all connections of the process.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::net::lookup_host;
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::timeout;

use super::clock;

/// How long a name may take.
const WITHIN: Duration = Duration::from_secs(5);
/// How long an answer, also a bad one, holds: every room of a worker asks for the same few names.
const KEEP: Duration = Duration::from_secs(30);
/// Names kept at most.
const MAX_NAMES: usize = 64;
/// Threads that may wait for the resolver: the system's own call blocks.
const AT_ONCE: usize = 2;
/// Addresses of a name used at most.
const MAX_FOUND: usize = 4;

type Answer = Arc<OnceCell<Option<Arc<[IpAddr]>>>>;

static NAMES: LazyLock<Mutex<HashMap<String, (Instant, Answer)>>> = LazyLock::new(Mutex::default);
static LOOKUPS: Semaphore = Semaphore::const_new(AT_ONCE);

/// Addresses of a host. Those of one name asked for at the same time are looked up once.
pub(crate) async fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let answer = answer_for(&mut NAMES.lock(), host, clock::now());
    let found = answer.get_or_init(|| look_up(host.to_owned())).await;
    match found {
        Some(found) => Ok(found.iter().map(|ip| SocketAddr::new(*ip, port)).collect()),
        None => Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address")),
    }
}

fn answer_for(names: &mut HashMap<String, (Instant, Answer)>, host: &str, now: Instant) -> Answer {
    names.retain(|_, (since, _)| now < *since + KEEP);
    if names.len() >= MAX_NAMES && !names.contains_key(host) {
        // Not kept: each asks for itself.
        return Answer::default();
    }
    let (_, answer) = names.entry(host.to_owned()).or_insert_with(|| (now, Answer::default()));
    Arc::clone(answer)
}

/// Never waits longer than [`WITHIN`], also for its turn.
async fn look_up(host: String) -> Option<Arc<[IpAddr]>> {
    let looking = async {
        let _turn = LOOKUPS.acquire().await.ok()?;
        let found = lookup_host((host.as_str(), 0)).await.ok()?;
        let mut ips: Vec<IpAddr> = found.map(|address| address.ip()).collect();
        ips.dedup();
        ips.truncate(MAX_FOUND);
        (!ips.is_empty()).then(|| ips.into())
    };
    timeout(WITHIN, looking).await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_needs_no_look_up() {
        assert_eq!(resolve("::1", 9).await.unwrap(), ["[::1]:9".parse().unwrap()]);
    }

    #[tokio::test]
    async fn a_name_of_this_host_is_found() {
        let found = resolve("localhost", 7).await.unwrap();
        assert!(found.iter().all(|address| address.ip().is_loopback() && address.port() == 7));
    }

    #[test]
    fn names_are_kept_for_a_while_and_not_without_bound() {
        let (mut names, start) = (HashMap::new(), clock::now());
        let first = answer_for(&mut names, "a", start);
        assert!(Arc::ptr_eq(&first, &answer_for(&mut names, "a", start)));
        assert!(!Arc::ptr_eq(&first, &answer_for(&mut names, "a", start + KEEP)));
        for i in 0..2 * MAX_NAMES {
            answer_for(&mut names, &i.to_string(), start + KEEP);
        }
        assert_eq!(names.len(), MAX_NAMES);
    }
}
