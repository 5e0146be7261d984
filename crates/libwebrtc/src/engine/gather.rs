//! Candidates beyond this host's own: asking STUN servers, holding TURN allocations.
//!
//! A task a server does what waits (names, connections, allocations) and tells findings; the
//! connection's driver does what needs its sockets.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rtc_audio::ice_server::{ServerKind, ServerTransport, ServerUrl};
use rtc_audio::stun::{Binding, Outcome};
use rtc_audio::turn::UNREACHABLE;
use tokio::sync::mpsc;

use super::clock;
use super::relay::{self, Order, Parcel};
use super::resolve::resolve;
use crate::peer_connection::IceCandidateError;
use crate::peer_connection_factory::IceServer;

/// Servers used at most.
const MAX_SERVERS: usize = 16;
/// Addresses of a TURN server tried at most.
const MAX_ADDRESSES: usize = 4;
/// How long others are tried after the first: a connection has 30 s.
const TRY_OTHERS_FOR: Duration = Duration::from_secs(12);
/// Findings that wait for the driver: a few flights of relayed datagrams.
const QUEUE: usize = 256;
/// How long an allocation must have held to be asked for again when it is lost.
const WORTH_IT: Duration = Duration::from_secs(30);
/// Not an answer of a server: the URL itself is of no use (RFC 8489 §14.8: Bad Request).
const BAD_URL: i32 = 400;

/// A password, which shows in no log.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Secret(String);

impl Secret {
    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// Which search of which connection's: a search that was given up may still tell something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Origin(u64);

/// What a search found.
#[derive(Debug)]
pub(crate) enum Finding {
    /// A STUN server's addresses: to be asked from the driver's sockets.
    Stun { origin: Origin, servers: Vec<SocketAddr> },
    /// An address that a server relays.
    Relayed { origin: Origin, relayed: SocketAddr, local: SocketAddr },
    /// A datagram that was relayed.
    Parcel { to: SocketAddr, peer: SocketAddr, data: Vec<u8> },
    /// The search or the allocation is over.
    Over { origin: Origin, failure: Option<(u16, String)> },
}

/// What the driver is to do about a finding.
#[derive(Debug)]
pub(crate) enum Gathered {
    /// Tell the remote of an address that others see for this base.
    Reflexive { mapped: SocketAddr, base: SocketAddr },
    /// Tell the remote of a relayed address.
    Relayed { relayed: SocketAddr, local: SocketAddr },
    /// A relayed address is gone.
    Gone { relayed: SocketAddr },
    /// A relayed address is given up for another, which is looked for.
    GivenUp { relayed: SocketAddr },
    /// A datagram came to a relayed address.
    Parcel { to: SocketAddr, peer: SocketAddr, data: Vec<u8> },
    /// Tell the application.
    Error(IceCandidateError),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Server {
    url: String,
    username: String,
    password: Secret,
}

#[derive(Debug)]
enum State {
    /// A task looks for it.
    Searching,
    /// A STUN server with its addresses.
    Stun(Vec<SocketAddr>),
    /// A TURN server that relays an address over a path from a local one.
    Relaying { relayed: SocketAddr, local: SocketAddr, since: Instant },
    /// It was of no use.
    Failed,
}

#[derive(Debug)]
struct Search {
    origin: Origin,
    server: Server,
    state: State,
    /// The task gives the allocation back when this goes.
    parcels: Option<mpsc::Sender<Parcel>>,
}

/// The searches of one connection.
#[derive(Debug)]
pub(crate) struct Gatherer {
    searches: Vec<Search>,
    bindings: Vec<(Origin, Binding)>,
    relays: HashMap<SocketAddr, mpsc::Sender<Parcel>>,
    sender: mpsc::Sender<Finding>,
    findings: mpsc::Receiver<Finding>,
    last: u64,
}

impl Gatherer {
    pub(crate) fn new() -> Self {
        let (sender, findings) = mpsc::channel(QUEUE);
        Self {
            searches: Vec::new(),
            bindings: Vec::new(),
            relays: HashMap::new(),
            sender,
            findings,
            last: 0,
        }
    }

    /// Uses these servers. What is known of one that was used before is kept, unless it had failed:
    /// then it is tried again. A server that is not named any more goes on relaying what it relays:
    /// a call may depend on it.
    pub(crate) fn configure(
        &mut self,
        now: Instant,
        servers: &[IceServer],
        bases: &[SocketAddr],
        out: &mut Vec<Gathered>,
    ) {
        let named: Vec<Server> = servers
            .iter()
            .flat_map(|server| {
                server.urls.iter().map(|url| Server {
                    url: url.clone(),
                    username: server.username.clone(),
                    password: Secret(server.password.clone()),
                })
            })
            .take(MAX_SERVERS)
            .collect();
        self.searches.retain(|search| match search.state {
            State::Relaying { .. } => true,
            State::Failed => false,
            State::Searching | State::Stun(_) => named.contains(&search.server),
        });
        let known: Vec<Origin> = self.searches.iter().map(|search| search.origin).collect();
        self.bindings.retain(|(origin, _)| known.contains(origin));
        for server in named {
            match self.searches.iter().position(|search| search.server == server) {
                Some(index) => self.ask_again(now, index, bases),
                None => self.search(server, out),
            }
        }
        while self.searches.len() > MAX_SERVERS {
            let search = self.searches.remove(0);
            self.forget(&search, out);
        }
    }

    fn search(&mut self, server: Server, out: &mut Vec<Gathered>) {
        self.last += 1;
        let origin = Origin(self.last);
        let refuse = |text: String| Gathered::Error(error(&server.url, None, BAD_URL, text));
        let url = match ServerUrl::parse(&server.url) {
            Ok(url) if url.kind == ServerKind::Stun && url.transport != ServerTransport::Udp => {
                return out.push(refuse("STUN over a stream shows no address for UDP".to_owned()));
            }
            Ok(url) => url,
            Err(error) => return out.push(refuse(error.to_string())),
        };
        let (parcels, waiting) = mpsc::channel(relay::QUEUE);
        let findings = self.sender.clone();
        let (username, password) = (server.username.clone(), server.password.clone());
        tokio::spawn(async move {
            // In a task of its own: whatever happens in it, the search comes to an end.
            let searching = tokio::spawn({
                let findings = findings.clone();
                async move { look(origin, url, username, password, waiting, &findings).await }
            });
            let failure = match searching.await {
                Ok(result) => result.err(),
                Err(_) => Some((UNREACHABLE, "the search broke".to_owned())),
            };
            // Nobody listens any more when the connection is closed.
            let _ = findings.send(Finding::Over { origin, failure }).await;
        });
        self.searches.push(Search {
            origin,
            server,
            state: State::Searching,
            parcels: Some(parcels),
        });
    }

    fn ask_again(&mut self, now: Instant, index: usize, bases: &[SocketAddr]) {
        let Some(search) = self.searches.get(index) else { return };
        if let State::Stun(servers) = &search.state {
            let (origin, servers) = (search.origin, servers.clone());
            self.ask(now, origin, &servers, bases);
        }
    }

    /// Asks the known STUN servers from these sockets (again), and tries anew what had failed: the
    /// network may have changed.
    pub(crate) fn gather_again(
        &mut self,
        now: Instant,
        bases: &[SocketAddr],
        out: &mut Vec<Gathered>,
    ) {
        for index in 0..self.searches.len() {
            self.ask_again(now, index, bases);
        }
        self.search_anew(
            |state| matches!(state, State::Failed),
            |relayed| Gathered::Gone { relayed },
            out,
        );
    }

    /// Gives up what is relayed, and looks for it anew: no path led to the remote any more, and a server
    /// that forgot us (it was restarted, or a NAT before it) says nothing of it.
    pub(crate) fn renew_relays(&mut self, out: &mut Vec<Gathered>) {
        let is_relaying = |state: &State| matches!(state, State::Relaying { .. });
        self.search_anew(is_relaying, |relayed| Gathered::GivenUp { relayed }, out);
    }

    /// Searches anew where a relay's path began at an address that this host has no more.
    pub(crate) fn remove_paths(&mut self, gone: &[IpAddr], out: &mut Vec<Gathered>) {
        let is_gone = |state: &State| match state {
            State::Relaying { local, .. } => gone.contains(&local.ip()),
            _ => false,
        };
        self.search_anew(is_gone, |relayed| Gathered::Gone { relayed }, out);
    }

    /// Begins those searches again; tells of what was relayed.
    fn search_anew(
        &mut self,
        is_over: impl Fn(&State) -> bool,
        tell: impl Fn(SocketAddr) -> Gathered,
        out: &mut Vec<Gathered>,
    ) {
        let searches = std::mem::take(&mut self.searches);
        let (over, kept) = searches.into_iter().partition(|search| is_over(&search.state));
        self.searches = kept;
        let over: Vec<Search> = over;
        for search in over {
            if let State::Relaying { relayed, .. } = search.state {
                self.relays.remove(&relayed);
                out.push(tell(relayed));
            }
            self.search(search.server, out);
        }
    }

    fn ask(&mut self, now: Instant, origin: Origin, servers: &[SocketAddr], bases: &[SocketAddr]) {
        for base in bases {
            // A server on this host sees nothing that we do not; one elsewhere is not reached
            // from loopback.
            let fits = |server: &&SocketAddr| {
                server.is_ipv4() == base.is_ipv4()
                    && server.ip().is_loopback() == base.ip().is_loopback()
            };
            if let Some(server) = servers.iter().find(fits)
                && !self.bindings.iter().any(|(_, b)| b.base() == *base && b.server() == *server)
            {
                self.bindings.push((origin, Binding::new(now, *base, *server)));
            }
        }
    }

    /// Forgets what hung on sockets that are closed.
    pub(crate) fn remove_bases(&mut self, gone: &[SocketAddr]) {
        self.bindings.retain(|(_, binding)| !gone.contains(&binding.base()));
    }

    fn forget(&mut self, search: &Search, out: &mut Vec<Gathered>) {
        if let State::Relaying { relayed, .. } = search.state {
            self.relays.remove(&relayed);
            out.push(Gathered::Gone { relayed });
        }
    }

    /// Says whether anything is looked for.
    pub(crate) fn is_searching(&self) -> bool {
        !self.bindings.is_empty()
            || self.searches.iter().any(|search| matches!(search.state, State::Searching))
    }

    /// Waits for something to be found.
    pub(crate) async fn next(&mut self) -> Option<Finding> {
        self.findings.recv().await
    }

    /// Takes what was found.
    pub(crate) fn on_finding(
        &mut self,
        now: Instant,
        finding: Finding,
        bases: &[SocketAddr],
        out: &mut Vec<Gathered>,
    ) {
        match finding {
            Finding::Parcel { to, peer, data } => {
                if self.relays.contains_key(&to) {
                    out.push(Gathered::Parcel { to, peer, data });
                }
            }
            Finding::Stun { origin, servers } => {
                if let Some(search) = self.searches.iter_mut().find(|s| s.origin == origin) {
                    search.state = State::Stun(servers.clone());
                    self.ask(now, origin, &servers, bases);
                }
            }
            Finding::Relayed { origin, relayed, local } => {
                if let Some(search) = self.searches.iter_mut().find(|s| s.origin == origin)
                    && let Some(parcels) = &search.parcels
                {
                    search.state = State::Relaying { relayed, local, since: now };
                    self.relays.insert(relayed, parcels.clone());
                    out.push(Gathered::Relayed { relayed, local });
                }
            }
            Finding::Over { origin, failure } => {
                let Some(index) = self.searches.iter().position(|s| s.origin == origin) else {
                    return;
                };
                let Some(search) = self.searches.get_mut(index) else { return };
                search.parcels = None;
                if matches!(search.state, State::Stun(_)) {
                    return;
                }
                let was = std::mem::replace(&mut search.state, State::Failed);
                let url = search.server.url.clone();
                if let Some((code, text)) = failure {
                    out.push(Gathered::Error(error(&url, None, i32::from(code), text)));
                }
                if let State::Relaying { relayed, since, .. } = was {
                    self.relays.remove(&relayed);
                    out.push(Gathered::Gone { relayed });
                    // A server that was restarted may serve again; one that gives an address for
                    // a moment only is left alone.
                    if now >= since + WORTH_IT {
                        let search = self.searches.remove(index);
                        self.search(search.server, out);
                    }
                }
            }
        }
    }

    /// Takes a datagram that answers a request of ours; says whether it was one.
    pub(crate) fn on_datagram(
        &mut self,
        source: SocketAddr,
        base: SocketAddr,
        data: &[u8],
        out: &mut Vec<Gathered>,
    ) -> bool {
        let answered = self
            .bindings
            .iter()
            .enumerate()
            .find_map(|(index, (_, b))| b.handle(source, base, data).map(|o| (index, o)));
        let Some((index, outcome)) = answered else { return false };
        let (origin, binding) = self.bindings.swap_remove(index);
        self.on_outcome(origin, &binding, outcome, out);
        true
    }

    fn on_outcome(
        &self,
        origin: Origin,
        binding: &Binding,
        outcome: Outcome,
        out: &mut Vec<Gathered>,
    ) {
        let url = self.searches.iter().find(|s| s.origin == origin).map(|s| s.server.url.as_str());
        let base = binding.base();
        let failed = |text: &str| {
            let url = url.unwrap_or_default();
            Gathered::Error(error(url, Some(base), i32::from(UNREACHABLE), text.to_owned()))
        };
        out.push(match outcome {
            Outcome::Mapped(mapped) => Gathered::Reflexive { mapped, base },
            Outcome::Refused => failed("the STUN server told no address"),
            Outcome::Silent => failed("the STUN server does not answer"),
        });
    }

    /// When [`Self::on_time`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.bindings.iter().map(|(_, binding)| binding.deadline()).min()
    }

    /// Sends requests that are due.
    pub(crate) fn on_time(
        &mut self,
        now: Instant,
        send: impl Fn(SocketAddr, SocketAddr, &[u8]),
        out: &mut Vec<Gathered>,
    ) {
        let mut silent = Vec::new();
        for (index, (_, binding)) in self.bindings.iter_mut().enumerate() {
            let (base, server) = (binding.base(), binding.server());
            match binding.poll(now) {
                Some(Ok(request)) => send(base, server, request),
                Some(Err(_)) => silent.push(index),
                None => {}
            }
        }
        for index in silent.into_iter().rev() {
            let (origin, binding) = self.bindings.swap_remove(index);
            self.on_outcome(origin, &binding, Outcome::Silent, out);
        }
    }

    /// Sends by way of a server. Says whether the source is a relayed address.
    pub(crate) fn send(&self, source: SocketAddr, peer: SocketAddr, data: &[u8]) -> bool {
        let Some(parcels) = self.relays.get(&source) else { return false };
        if parcels.try_send(Parcel { peer, data: data.to_vec() }).is_err() {
            log::trace!("datagram to {peer} dropped on its way to the TURN server");
        }
        true
    }
}

fn error(url: &str, base: Option<SocketAddr>, code: i32, text: String) -> IceCandidateError {
    log::debug!("{url}: {code} {text}");
    IceCandidateError {
        address: base.map(|base| base.ip().to_string()).unwrap_or_default(),
        port: base.map_or(0, |base| i32::from(base.port())),
        url: url.to_owned(),
        error_code: code,
        error_text: text,
    }
}

/// Finds a server's addresses, then what it has to give.
async fn look(
    origin: Origin,
    url: ServerUrl,
    username: String,
    password: Secret,
    mut parcels: mpsc::Receiver<Parcel>,
    findings: &mpsc::Sender<Finding>,
) -> Result<(), (u16, String)> {
    let found = resolve(&url.host, url.port).await;
    let mut servers = found.map_err(|error| (UNREACHABLE, error.to_string()))?;
    servers.sort_by_key(SocketAddr::is_ipv6);
    match url.kind {
        ServerKind::Stun => {
            let _ = findings.send(Finding::Stun { origin, servers }).await;
            Ok(())
        }
        ServerKind::Turn => {
            let Some(server) = servers.first().copied() else {
                return Err((UNREACHABLE, "the name has no address".to_owned()));
            };
            let mut order = Order { origin, url, server, username, password };
            let mut result = relay::run(&order, &mut parcels, findings).await;
            // Of several addresses one may be down, or of a family that this host has not.
            let begun = clock::now();
            for other in servers.into_iter().skip(1).take(MAX_ADDRESSES - 1) {
                let failed = matches!(result, Err((UNREACHABLE, _)));
                if !failed || parcels.is_closed() || clock::now() > begun + TRY_OTHERS_FOR {
                    break;
                }
                order.server = other;
                // What is told is what was wrong with the first.
                result = relay::run(&order, &mut parcels, findings).await.or(result);
            }
            result
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "s3cr3t";

    fn server(url: &str) -> IceServer {
        let (username, password) = ("anna".to_owned(), SECRET.to_owned());
        IceServer { urls: vec![url.to_owned()], username, password }
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// A gatherer with one server that relays an address since `now`.
    fn relaying(now: Instant) -> (Gatherer, Origin) {
        let (mut gatherer, mut out) = (Gatherer::new(), Vec::new());
        gatherer.configure(now, &[server("turn:127.0.0.1:9")], &[], &mut out);
        let origin = gatherer.searches[0].origin;
        let (relayed, local) = (address("192.0.2.1:5000"), address("10.0.0.1:7000"));
        let found = Finding::Relayed { origin, relayed, local };
        gatherer.on_finding(now, found, &[], &mut out);
        assert!(matches!(out[..], [Gathered::Relayed { .. }]));
        assert!(!gatherer.is_searching());
        (gatherer, origin)
    }

    #[tokio::test]
    async fn a_lost_allocation_is_sought_again_unless_it_held_for_a_moment_only() {
        for (held, again) in [(WORTH_IT, true), (WORTH_IT / 2, false)] {
            let now = clock::now();
            let (mut gatherer, origin) = relaying(now);
            let mut out = Vec::new();
            let over = Finding::Over { origin, failure: None };
            gatherer.on_finding(now + held, over, &[], &mut out);
            assert!(matches!(out[..], [Gathered::Gone { .. }]), "{out:?}");
            assert_eq!(gatherer.is_searching(), again);
            assert!(!gatherer.send(address("192.0.2.1:5000"), address("192.0.2.9:1"), b"x"));
        }
    }

    #[tokio::test]
    async fn a_relay_whose_path_is_gone_is_sought_again() {
        let (mut gatherer, _) = relaying(clock::now());
        let mut out = Vec::new();
        gatherer.remove_paths(&[address("10.0.0.2:1").ip()], &mut out);
        assert!(out.is_empty());
        gatherer.remove_paths(&[address("10.0.0.1:1").ip()], &mut out);
        assert!(matches!(out[..], [Gathered::Gone { .. }]), "{out:?}");
        assert!(gatherer.is_searching());
    }

    #[tokio::test]
    async fn a_relay_over_which_nothing_comes_any_more_is_sought_again() {
        let (mut gatherer, origin) = relaying(clock::now());
        let mut out = Vec::new();
        gatherer.renew_relays(&mut out);
        assert!(matches!(out[..], [Gathered::GivenUp { .. }]), "{out:?}");
        assert!(gatherer.is_searching() && gatherer.searches[0].origin != origin);
        assert!(gatherer.relays.is_empty());
        gatherer.renew_relays(&mut out);
        assert_eq!((gatherer.searches.len(), out.len()), (1, 1), "it is looked for already");
    }

    #[tokio::test]
    async fn what_failed_is_tried_again_when_the_network_changes_and_what_holds_is_kept() {
        let now = clock::now();
        let (mut gatherer, _) = relaying(now);
        let mut out = Vec::new();
        let both = [server("turn:127.0.0.1:9"), server("turn:127.0.0.1:10")];
        gatherer.configure(now, &both, &[], &mut out);
        assert_eq!(gatherer.searches.len(), 2, "the first is not sought anew");
        let origin = gatherer.searches[1].origin;
        let failure = Some((UNREACHABLE, "down".to_owned()));
        gatherer.on_finding(now, Finding::Over { origin, failure }, &[], &mut out);
        assert!(matches!(out[..], [Gathered::Error(_)]), "{out:?}");
        assert!(!gatherer.is_searching());
        gatherer.gather_again(now, &[], &mut out);
        assert!(gatherer.is_searching());
        assert_eq!(gatherer.relays.len(), 1);
    }

    #[tokio::test]
    async fn servers_are_bounded_and_their_passwords_show_nowhere() {
        let mut gatherer = Gatherer::new();
        let many: Vec<IceServer> =
            (0..100).map(|i| server(&format!("turn:127.0.0.1:{}", 1_000 + i))).collect();
        gatherer.configure(clock::now(), &many, &[], &mut Vec::new());
        assert_eq!(gatherer.searches.len(), MAX_SERVERS);
        let shown = format!("{gatherer:?} {:?}", many[0]);
        assert!(!shown.contains(SECRET), "{shown}");
    }
}
