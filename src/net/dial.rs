//! Connections to providers: TCP and TLS, and a few of them opened ahead of their use.
//!
//! All TLS clients of the process share one configuration and with it the sessions to resume (RFC
//! 8446 section 2.2), so that a second connection to a host costs less than the first.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, LazyLock},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use parking_lot::Mutex;
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, ReadBuf},
    net::TcpStream,
    runtime::{self, Handle},
};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::MaybeTlsStream;
use url::{Host, Url};

use super::dns::Names;
use crate::clock;

/// An address that has not answered by then gets company (RFC 8305 section 8).
const STAGGER: Duration = Duration::from_millis(250);
/// A connection opened ahead is of use for so long. Servers wait some time for a first request.
const KEPT: Duration = Duration::from_secs(20);
/// Opened ahead at once, for one host and for all.
const MOST_PER_HOST: usize = 8;
const MOST: usize = 32;
/// Longest opening ahead.
const PREPARE: Duration = Duration::from_secs(5);

/// A connection, encrypted where the address says so.
pub type Stream = MaybeTlsStream<TcpStream>;

/// The process's TLS: Mozilla's roots and ring, whatever the machine has installed.
pub fn tls() -> Result<Arc<ClientConfig>, String> {
    static SHARED: LazyLock<Result<Arc<ClientConfig>, String>> = LazyLock::new(|| {
        let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        client_config(roots).map(Arc::new)
    });
    SHARED.clone()
}

fn client_config(roots: RootCertStore) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    // Sessions are kept in memory by rustls' own default, for 256 hosts.
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// Where a connection leads.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Target {
    is_secure: bool,
    host: Host<String>,
    port: u16,
}

impl Target {
    fn of(url: &Url) -> io::Result<Self> {
        let wrong = |why: &str| io::Error::new(io::ErrorKind::InvalidInput, why);
        Ok(Self {
            is_secure: matches!(url.scheme(), "https" | "wss"),
            host: url.host().ok_or_else(|| wrong("the address has no host"))?.to_owned(),
            port: url.port_or_known_default().ok_or_else(|| wrong("the address has no port"))?,
        })
    }

    async fn open(&self) -> io::Result<Stream> {
        let tcp = match &self.host {
            Host::Domain(name) => {
                let names = Names::shared();
                let tcp = race(&names.addresses(name).await?, self.port).await;
                if tcp.is_err() {
                    names.doubt(name);
                }
                tcp?
            }
            Host::Ipv4(ip) => race(&[IpAddr::V4(*ip)], self.port).await?,
            Host::Ipv6(ip) => race(&[IpAddr::V6(*ip)], self.port).await?,
        };
        // Messages are small and must not wait for one another.
        tcp.set_nodelay(true)?;
        if !self.is_secure {
            return Ok(MaybeTlsStream::Plain(tcp));
        }
        encrypt(tls().map_err(io::Error::other)?, self.name()?, tcp).await
    }

    fn name(&self) -> io::Result<ServerName<'static>> {
        match &self.host {
            Host::Domain(name) => ServerName::try_from(name.clone())
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error)),
            Host::Ipv4(ip) => Ok(IpAddr::V4(*ip).into()),
            Host::Ipv6(ip) => Ok(IpAddr::V6(*ip).into()),
        }
    }
}

async fn encrypt(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    tcp: TcpStream,
) -> io::Result<Stream> {
    Ok(MaybeTlsStream::Rustls(TlsConnector::from(config).connect(name, tcp).await?))
}

/// Opens a connection. Bound it with a time-out.
pub async fn open(url: &Url) -> io::Result<Stream> {
    Target::of(url)?.open().await
}

/// The families in turn, the resolver's first choice first (RFC 8305 section 4).
fn in_turn(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let is_first =
        |ip: &&IpAddr| addresses.first().is_some_and(|one| one.is_ipv4() == ip.is_ipv4());
    let (mut those, mut others) =
        (addresses.iter().filter(is_first), addresses.iter().filter(|ip| !is_first(ip)));
    let mut out = Vec::with_capacity(addresses.len());
    while out.len() < addresses.len() {
        out.extend(those.next());
        out.extend(others.next());
    }
    out
}

/// The first to answer wins.
async fn race(addresses: &[IpAddr], port: u16) -> io::Result<TcpStream> {
    let mut waiting = in_turn(addresses).into_iter();
    let mut trying = FuturesUnordered::new();
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        match waiting.next() {
            Some(ip) => trying.push(TcpStream::connect(SocketAddr::new(ip, port))),
            None if trying.is_empty() => return Err(failure),
            None => {}
        }
        tokio::select! {
            biased;
            Some(tried) = trying.next() => match tried {
                Ok(stream) => return Ok(stream),
                Err(error) => failure = error,
            },
            () = tokio::time::sleep(STAGGER), if waiting.len() > 0 => {}
        }
    }
}

/// Connections opened ahead, oldest first. A socket is driven by the runtime that opened it and
/// ages by that runtime's clock: each has its own.
type Ready = HashMap<Target, Vec<(Instant, Stream)>>;

static READY: LazyLock<Mutex<HashMap<runtime::Id, Ready>>> = LazyLock::new(Mutex::default);

/// What this runtime has ready, without what is too old.
fn with_ready<T>(then: impl FnOnce(&mut Ready) -> T) -> T {
    let (id, now) = (Handle::current().id(), clock::now());
    let mut all = READY.lock();
    let ready = all.entry(id).or_default();
    ready.retain(|_, streams| {
        streams.retain(|(until, _)| *until > now);
        !streams.is_empty()
    });
    let out = then(ready);
    if ready.is_empty() {
        all.remove(&id);
    }
    out
}

/// Opens a connection ahead: whoever asks [`ready`] within 20 s, on the same runtime, has it
/// without waiting. Failure is no error; at most 8 are kept for a host.
pub async fn prepare(url: &Url) {
    let Ok(target) = Target::of(url) else { return };
    let is_full = with_ready(|ready| {
        ready.get(&target).map_or(0, Vec::len) >= MOST_PER_HOST
            || ready.values().map(Vec::len).sum::<usize>() >= MOST
    });
    if is_full {
        return;
    }
    let Ok(Ok(stream)) = tokio::time::timeout(PREPARE, target.open()).await else { return };
    let until = clock::now() + KEPT;
    with_ready(|ready| ready.entry(target).or_default().push((until, stream)));
    // Nobody may ask for another: the last ones must not stay open for ever.
    tokio::spawn(async move {
        tokio::time::sleep_until(until.into()).await;
        with_ready(|_| ());
    });
}

/// A connection that [`prepare`] opened and that is still open, as far as can be told at once.
pub fn ready(url: &Url) -> Option<Stream> {
    let target = Target::of(url).ok()?;
    loop {
        let mut stream = with_ready(|ready| Some(ready.get_mut(&target)?.pop()?.1))?;
        if is_open(&mut stream) {
            return Some(stream);
        }
    }
}

/// A server that has nothing to answer says nothing, unless it closes.
fn is_open(stream: &mut Stream) -> bool {
    let mut byte = [0];
    let mut context = Context::from_waker(Waker::noop());
    let read = Pin::new(stream).poll_read(&mut context, &mut ReadBuf::new(&mut byte));
    matches!(read, Poll::Pending)
}

#[cfg(test)]
mod tests {
    use rustls::{HandshakeKind, ServerConfig, pki_types::PrivateKeyDer};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        sync::mpsc,
    };
    use tokio_rustls::TlsAcceptor;

    use super::*;

    const BOUND: Duration = Duration::from_secs(10);

    async fn listen() -> (TcpListener, Url) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}/", listener.local_addr().unwrap());
        (listener, Url::parse(&url).unwrap())
    }

    #[test]
    fn the_families_take_turns() {
        let (a, b): (IpAddr, IpAddr) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
        let (c, d): (IpAddr, IpAddr) =
            ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap());
        assert_eq!(in_turn(&[c, d, a, b]), [c, a, d, b]);
        assert_eq!(in_turn(&[a, b]), [a, b]);
        assert_eq!(in_turn(&[]), [] as [IpAddr; 0]);
    }

    #[tokio::test]
    async fn an_address_at_which_nobody_is_gives_way_to_the_next() {
        let (listener, url) = listen().await;
        let port = url.port().unwrap();
        let (none, there) = ("::1".parse().unwrap(), "127.0.0.1".parse().unwrap());
        let stream = tokio::time::timeout(BOUND, race(&[none, there], port)).await.unwrap();
        assert_eq!(stream.unwrap().peer_addr().unwrap(), listener.local_addr().unwrap());
        assert!(race(&[], port).await.is_err());
    }

    #[tokio::test]
    async fn a_prepared_connection_is_taken_once_and_only_while_it_is_open() {
        let (listener, url) = listen().await;
        prepare(&url).await;
        prepare(&url).await;
        let (older, _) = listener.accept().await.unwrap();
        let _newer = listener.accept().await.unwrap();
        drop(older);
        // The end of the older one has to arrive.
        tokio::task::yield_now().await;
        assert!(ready(&url).is_some());
        let gone = async {
            while ready(&url).is_some() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(BOUND, gone).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_prepared_connection_that_nobody_wants_is_closed() {
        let (listener, url) = listen().await;
        prepare(&url).await;
        let (mut accepted, _) = listener.accept().await.unwrap();
        assert_eq!(accepted.read(&mut [0; 4]).await.unwrap(), 0, "closed by itself");
        assert!(ready(&url).is_none());
    }

    #[test]
    fn a_runtime_neither_takes_nor_ages_what_another_has_prepared() {
        let paused = |is_paused| {
            let mut builder = runtime::Builder::new_current_thread();
            builder.enable_all().start_paused(is_paused).build().unwrap()
        };
        let (one, another) = (paused(false), paused(true));
        let (_listener, url) = one.block_on(async {
            let (listener, url) = listen().await;
            prepare(&url).await;
            (listener, url)
        });
        another.block_on(async {
            tokio::time::advance(KEPT * 2).await;
            assert!(ready(&url).is_none());
        });
        assert!(one.block_on(async { ready(&url) }).is_some());
    }

    #[tokio::test]
    async fn a_host_gets_no_more_connections_ahead_than_its_share() {
        let (_listener, url) = listen().await;
        for _ in 0..MOST_PER_HOST + 3 {
            prepare(&url).await;
        }
        let count = std::iter::from_fn(|| ready(&url)).count();
        assert_eq!(count, MOST_PER_HOST);
    }

    /// Tells of each connection whether its TLS session was resumed.
    async fn tls_server() -> (SocketAddr, RootCertStore, mpsc::Receiver<Option<HandshakeKind>>) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let certificate = made.cert.der().clone();
        let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, kinds) = mpsc::channel(8);
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let mut stream = acceptor.accept(tcp).await.unwrap();
                let _ = sender.send(stream.get_ref().1.handshake_kind()).await;
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                let _ = stream.write_all(answer).await;
                let _ = stream.flush().await;
                let _ = stream.read(&mut [0; 1024]).await;
                let _ = stream.shutdown().await;
            }
        });
        (address, roots, kinds)
    }

    #[tokio::test]
    async fn a_socket_resumes_the_session_of_a_request_before_it() {
        let (address, roots, mut kinds) = tls_server().await;
        let config = Arc::new(client_config(roots).unwrap());
        let url = format!("https://localhost:{}/", address.port());
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured((*config).clone())
            .resolve("localhost", address)
            .no_proxy()
            .build()
            .unwrap();
        assert_eq!(client.get(url).send().await.unwrap().text().await.unwrap(), "ok");
        assert_eq!(kinds.recv().await.unwrap(), Some(HandshakeKind::Full));
        drop(client);
        let tcp = TcpStream::connect(address).await.unwrap();
        let mut socket = encrypt(config, "localhost".try_into().unwrap(), tcp).await.unwrap();
        assert_eq!(kinds.recv().await.unwrap(), Some(HandshakeKind::Resumed));
        socket.shutdown().await.unwrap();
    }
}
