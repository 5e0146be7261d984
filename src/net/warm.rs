//! An HTTP client whose connections are there before they are needed.
//!
//! Over HTTP/1.1 each request under way takes a connection. [`Warm`] keeps a ledger of its
//! connections: [`Warm::ready`] opens what is missing and asks something small over one that has
//! rested for long, so that it is no turn that finds out that the server has closed it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use parking_lot::Mutex;
use reqwest::{
    Client, Method, RequestBuilder, Response,
    header::{CONNECTION, HeaderMap},
};
use url::Url;

use super::http::{self, Endpoint, Failure};
use crate::clock;

/// Beyond as many connections as were busy at once lately, this many more.
const SPARE: usize = 1;
/// And no more than this by themselves.
const MOST: usize = 8;
/// How long "lately" is.
const LATELY: Duration = Duration::from_mins(5);
/// A provider waits at least a minute for the next request; what has rested less is there.
const FRESH: Duration = Duration::from_secs(20);
/// A server of one's own, without TLS, may wait 5 s alone, as uvicorn does.
const FRESH_PLAIN: Duration = Duration::from_secs(3);
/// How long the opening of a connection ahead of its use may take.
const OPENING: Duration = Duration::from_secs(5);
/// What is asked for in order to open a connection is read to its end, up to this.
const MAX_BYTES: usize = 1 << 20;
/// A connection that had rested and broke without an answer had been closed by the server, if it
/// broke this early.
const STALE: Duration = Duration::from_secs(1);
/// So many such connections are put up with for one request.
const MOST_STALE: usize = 3;

/// The connections of one client, as far as its requests tell: pure.
#[derive(Debug, Default)]
struct Ledger {
    busy: usize,
    opening: usize,
    /// Since when each rests, oldest first. The client takes the youngest first.
    rested: Vec<Instant>,
    /// The most that were busy at once, and when that was.
    peak: Option<(usize, Instant)>,
}

impl Ledger {
    /// A request begins; whether it is likely to find a connection.
    fn take(&mut self, now: Instant) -> bool {
        self.forget(now);
        self.busy += 1;
        if self.peak.is_none_or(|(most, at)| self.busy >= most || now > at + LATELY) {
            self.peak = Some((self.busy, now));
        }
        self.rested.pop().is_some()
    }

    /// A request has ended; with its connection, unless the answer was read whole.
    fn give_back(&mut self, is_whole: bool, now: Instant) {
        self.busy = self.busy.saturating_sub(1);
        if is_whole {
            self.rested.push(now);
        }
    }

    /// How many connections are to be opened or tried now. Each must be [`Self::opened`].
    fn wanted(&mut self, fresh: Duration, now: Instant) -> usize {
        self.forget(now);
        let peak = self.peak.filter(|(_, at)| now <= *at + LATELY).map_or(0, |(most, _)| most);
        let target = (peak.max(1) + SPARE).min(MOST);
        let missing = target.saturating_sub(self.busy + self.opening + self.rested.len());
        let is_fresh = self.rested.last().is_some_and(|since| now < *since + fresh);
        let wanted = missing.max(usize::from(!is_fresh && self.opening == 0 && self.busy < MOST));
        self.opening += wanted;
        // The youngest is taken for the first of them.
        if !is_fresh && wanted > missing {
            self.rested.pop();
        }
        wanted
    }

    fn opened(&mut self, is_open: bool, now: Instant) {
        self.opening = self.opening.saturating_sub(1);
        if is_open {
            self.rested.push(now);
        }
    }

    /// What the client has closed by itself.
    fn forget(&mut self, now: Instant) {
        self.rested.retain(|since| now < *since + http::POOL_IDLE);
    }
}

/// A client for one provider. Clones share connections and ledger.
#[derive(Debug, Clone)]
pub struct Warm(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    client: Client,
    /// What is asked for when nothing is needed but the connection.
    probe: Url,
    headers: HeaderMap,
    fresh: Duration,
    ledger: Mutex<Ledger>,
    /// The server closes the connection after a HEAD.
    wants_get: AtomicBool,
}

impl Warm {
    /// Opens nothing yet. `probe`: path segments of something that costs nothing to ask for.
    pub fn new(endpoint: &Endpoint, probe: &[&str], connect: Duration) -> Result<Self, String> {
        let probe = endpoint.url(probe);
        let fresh = if probe.scheme() == "https" { FRESH } else { FRESH_PLAIN };
        Ok(Self(Arc::new(Shared {
            client: http::client(connect)?,
            probe,
            headers: endpoint.headers().clone(),
            fresh,
            ledger: Mutex::default(),
            wants_get: AtomicBool::new(false),
        })))
    }

    /// A POST with the endpoint's headers, for [`Self::send`].
    pub fn post(&self, url: Url) -> RequestBuilder {
        self.0.client.post(url).headers(self.0.headers.clone())
    }

    /// Sends one request; another status than 2xx is a failure. Where the server had closed the
    /// connection meanwhile, it is sent again at once.
    pub async fn send(&self, request: RequestBuilder) -> Result<(Response, Lease), Failure> {
        let mut request = request;
        for _ in 0..MOST_STALE {
            let begun = clock::now();
            let again = request.try_clone();
            let (lease, had_rested) = self.lease();
            match http::send(request).await {
                Err(Failure::Network(reason)) => {
                    drop(lease);
                    let is_stale = had_rested
                        && clock::now() < begun + STALE
                        && !reason.starts_with(http::NO_CONNECTION);
                    match again.filter(|_| is_stale) {
                        Some(again) => {
                            tracing::debug!(reason, "a connection had been closed; sent again");
                            request = again;
                        }
                        None => return Err(Failure::Network(reason)),
                    }
                }
                outcome => return Self::settled(outcome, lease),
            }
        }
        let (lease, _) = self.lease();
        Self::settled(http::send(request).await, lease)
    }

    fn settled(
        outcome: Result<Response, Failure>,
        lease: Lease,
    ) -> Result<(Response, Lease), Failure> {
        match outcome {
            Ok(response) => Ok((response, lease)),
            Err(refused @ Failure::Status { .. }) => {
                // Its body has been read.
                lease.ended();
                Err(refused)
            }
            Err(failure) => Err(failure),
        }
    }

    /// Makes sure that a connection is at hand for the next request. Costs nothing when one is;
    /// failure is not an error.
    pub async fn ready(&self) {
        let wanted = self.0.ledger.lock().wanted(self.0.fresh, clock::now());
        join_all((0..wanted).map(|_| self.open())).await;
    }

    async fn open(&self) {
        let mut opening = Opening { shared: &self.0, is_open: false };
        let open = async {
            if !self.0.wants_get.load(Ordering::Relaxed) {
                match self.ask(Method::HEAD).await {
                    Some(true) => return true,
                    Some(false) => self.0.wants_get.store(true, Ordering::Relaxed),
                    None => return false,
                }
            }
            self.ask(Method::GET).await == Some(true)
        };
        opening.is_open = tokio::time::timeout(OPENING, open).await.unwrap_or(false);
    }

    /// Whether the connection stays; `None` without an answer.
    async fn ask(&self, method: Method) -> Option<bool> {
        let request = self.0.client.request(method, self.0.probe.clone());
        let response = request.headers(self.0.headers.clone()).send().await.ok()?;
        let closes = response.headers().get(CONNECTION);
        let stays = closes.is_none_or(|value| !value.as_bytes().eq_ignore_ascii_case(b"close"));
        http::read_bounded(response, MAX_BYTES).await;
        Some(stays)
    }

    fn lease(&self) -> (Lease, bool) {
        let had_rested = self.0.ledger.lock().take(clock::now());
        (Lease { warm: self.clone(), is_whole: false }, had_rested)
    }
}

/// A connection that is being opened, also when that is given up in the middle.
struct Opening<'a> {
    shared: &'a Shared,
    is_open: bool,
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.shared.ledger.lock().opened(self.is_open, clock::now());
    }
}

/// A request's connection. Dropped before [`Lease::ended`] the connection counts as lost, and
/// another is opened for the next turn, which is not to pay for an interruption.
#[derive(Debug)]
pub struct Lease {
    warm: Warm,
    is_whole: bool,
}

impl Lease {
    /// The answer has been read to its end.
    pub fn ended(mut self) {
        self.is_whole = true;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.warm.0.ledger.lock().give_back(self.is_whole, clock::now());
        if !self.is_whole
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let warm = self.warm.clone();
            runtime.spawn(async move { warm.ready().await });
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;
    use crate::net::http::KeyHeader;

    const FRESH: Duration = Duration::from_secs(20);

    fn at(seconds: u64) -> Instant {
        static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(clock::now);
        *START + Duration::from_secs(seconds)
    }

    fn open(ledger: &mut Ledger, seconds: u64) -> usize {
        let wanted = ledger.wanted(FRESH, at(seconds));
        for _ in 0..wanted {
            ledger.opened(true, at(seconds));
        }
        wanted
    }

    #[test]
    fn one_and_a_spare_are_opened_and_then_no_more() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.wanted(FRESH, at(0)), 2);
        assert_eq!(ledger.wanted(FRESH, at(0)), 0, "they are being opened");
        ledger.opened(true, at(0));
        ledger.opened(true, at(0));
        for turn in 1..10 {
            assert_eq!(open(&mut ledger, turn), 0);
            assert!(ledger.take(at(turn)));
            assert_eq!(open(&mut ledger, turn), 0, "the spare is there");
            ledger.give_back(true, at(turn));
        }
    }

    #[test]
    fn what_has_rested_for_long_is_tried_before_it_is_needed() {
        let mut ledger = Ledger::default();
        open(&mut ledger, 0);
        assert_eq!(open(&mut ledger, 19), 0);
        assert_eq!(open(&mut ledger, 20), 1);
        assert_eq!(open(&mut ledger, 21), 0, "the youngest is fresh");
        assert_eq!(ledger.rested.len(), 2);
        assert_eq!(open(&mut ledger, 1_000), 2, "the client has closed them all");
    }

    #[test]
    fn a_connection_that_an_interruption_cost_is_replaced() {
        let mut ledger = Ledger::default();
        open(&mut ledger, 0);
        ledger.take(at(1));
        ledger.give_back(false, at(2));
        assert_eq!(open(&mut ledger, 2), 1);
    }

    #[test]
    fn more_are_kept_where_more_are_busy_at_once_but_not_for_ever() {
        let mut ledger = Ledger::default();
        open(&mut ledger, 0);
        for _ in 0..3 {
            ledger.take(at(1));
        }
        assert_eq!(open(&mut ledger, 1), 1, "three are busy: one to spare");
        for _ in 0..20 {
            ledger.take(at(2));
        }
        assert_eq!(open(&mut ledger, 2), 0, "no more than {MOST} by themselves");
        for _ in 0..23 {
            ledger.give_back(false, at(3));
        }
        assert_eq!(open(&mut ledger, 400), 2);
    }

    /// The first two connections are closed when a second request comes over them: too late for the
    /// client to know before.
    async fn forgetful() -> Endpoint {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}/v1", listener.local_addr().unwrap());
        tokio::spawn(async move {
            for nth in 0.. {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let mut request = [0; 4_096];
                    let most = if nth < 2 { 1 } else { 100 };
                    for _ in 0..most {
                        let _ = stream.read(&mut request).await;
                        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                        let _ = stream.write_all(answer).await;
                    }
                    let _ = stream.read(&mut request).await;
                });
            }
        });
        Endpoint::new(&base, "key".into(), KeyHeader::Bearer).unwrap()
    }

    #[tokio::test]
    async fn a_connection_that_the_server_has_closed_costs_no_request() {
        let endpoint = forgetful().await;
        let warm = Warm::new(&endpoint, &["models"], Duration::from_secs(2)).unwrap();
        warm.ready().await;
        for _ in 0..3 {
            let request = warm.post(endpoint.url(&["chat"])).body("{}");
            let (response, lease) = warm.send(request).await.unwrap();
            assert_eq!(response.status(), 200);
            assert!(response.bytes().await.unwrap().is_empty());
            lease.ended();
        }
    }

    #[test]
    fn a_request_without_a_connection_at_rest_opens_its_own() {
        let mut ledger = Ledger::default();
        assert!(!ledger.take(at(0)));
    }
}
