//! The path to one TURN server: a socket, TLS where asked for, and the allocation's time.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rtc_audio::ice_server::{ServerTransport, ServerUrl};
use rtc_audio::turn::{self, Relay, RelayConfig, RelayEvent};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::sync::mpsc;
use tokio::time::{sleep, sleep_until, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

use super::clock;
use super::gather::{Finding, Origin, Secret};
use crate::testing;

/// Datagrams that wait for the path to the server.
pub(super) const QUEUE: usize = 64;
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// How long giving the address back may take.
const GOODBYE_WITHIN: Duration = Duration::from_secs(1);
/// The largest message over UDP.
const DATAGRAM: usize = 2_048;
/// The largest message over a stream: 64 KB and a head; most are datagrams.
const READ: usize = 4_096;
/// How long a stream may refuse to take a message.
const SEND_WITHIN: Duration = Duration::from_secs(5);
const AFTER_ERROR: Duration = Duration::from_millis(100);

/// A datagram to a peer, by way of the server.
pub(crate) struct Parcel {
    pub(crate) peer: SocketAddr,
    pub(crate) data: Vec<u8>,
}

/// What a relay is made of.
pub(super) struct Order {
    pub(super) origin: Origin,
    pub(super) url: ServerUrl,
    pub(super) server: SocketAddr,
    pub(super) username: String,
    pub(super) password: Secret,
}

/// Runs an allocation until the sender of `parcels` is gone, then gives it back. Says how it ended: an
/// error, if there never was an address.
pub(super) async fn run(
    order: &Order,
    parcels: &mut mpsc::Receiver<Parcel>,
    findings: &mpsc::Sender<Finding>,
) -> Result<(), (u16, String)> {
    let unreachable = |error: io::Error| (turn::UNREACHABLE, describe(&order.url, &error));
    match order.url.transport {
        ServerTransport::Udp => {
            let socket = connect_udp(order.server).await.map_err(unreachable)?;
            let local = socket.local_addr().map_err(unreachable)?;
            let relay = order.relay(local, false);
            drive(relay, Path::udp(socket, order.server), order, local, parcels, findings).await
        }
        ServerTransport::Tcp | ServerTransport::Tls => {
            let connected = timeout(CONNECT_WITHIN, connect_tcp(order.server)).await;
            let stream = connected.map_err(|_| unreachable(io::ErrorKind::TimedOut.into()))?;
            let stream = stream.map_err(unreachable)?;
            let local = stream.local_addr().map_err(unreachable)?;
            let path = if order.url.transport == ServerTransport::Tcp {
                Path::stream(stream)
            } else {
                let secured = timeout(CONNECT_WITHIN, secure(stream, &order.url.host)).await;
                let secured = secured.map_err(|_| unreachable(io::ErrorKind::TimedOut.into()))?;
                Path::stream(secured.map_err(unreachable)?)
            };
            drive(order.relay(local, true), path, order, local, parcels, findings).await
        }
    }
}

fn describe(url: &ServerUrl, error: &io::Error) -> String {
    let how = match url.transport {
        ServerTransport::Udp => "UDP",
        ServerTransport::Tcp => "TCP",
        ServerTransport::Tls => "TLS",
    };
    format!("the TURN server cannot be reached over {how}: {error}")
}

impl Order {
    fn relay(&self, local: SocketAddr, stream: bool) -> Relay {
        Relay::new(
            clock::now(),
            RelayConfig {
                local,
                server: self.server,
                stream,
                // The family of the path is the one family that the server surely has.
                ipv6: self.server.is_ipv6(),
                username: self.username.clone(),
                password: self.password.expose().to_owned(),
            },
        )
    }
}

async fn connect_udp(server: SocketAddr) -> io::Result<UdpSocket> {
    let any = match server {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    Ok(socket)
}

async fn connect_tcp(server: SocketAddr) -> io::Result<tokio::net::TcpStream> {
    let socket = if server.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    let stream = socket.connect(server).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn secure(
    stream: tokio::net::TcpStream,
    host: &str,
) -> io::Result<tokio_rustls::client::TlsStream<tokio::net::TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    for authority in testing::trusted() {
        roots.add(CertificateDer::from(authority)).map_err(io::Error::other)?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Duplex for S {}

/// The way to the server, which carries whole messages.
enum Path {
    Udp { socket: UdpSocket, server: SocketAddr, buffer: Vec<u8> },
    Stream { stream: Box<dyn Duplex>, buffer: Vec<u8>, used: usize },
}

impl Path {
    fn udp(socket: UdpSocket, server: SocketAddr) -> Self {
        Self::Udp { socket, server, buffer: vec![0; DATAGRAM] }
    }

    fn stream(stream: impl Duplex + 'static) -> Self {
        Self::Stream { stream: Box::new(stream), buffer: Vec::with_capacity(READ), used: 0 }
    }

    /// The next message; an error ends the path. Nothing is lost when it is not waited for.
    async fn receive(&mut self) -> io::Result<&[u8]> {
        match self {
            Self::Udp { socket, server, buffer } => loop {
                // An error (ICMP port unreachable) says nothing about the next datagram, but one
                // that comes again and again must not spin.
                match socket.recv(buffer).await {
                    Ok(_) if testing::udp_is_blocked(*server) => {}
                    Ok(len) => return Ok(buffer.get(..len).unwrap_or_default()),
                    Err(error) => {
                        log::debug!("from the TURN server: {error}");
                        sleep(AFTER_ERROR).await;
                    }
                }
            },
            Self::Stream { stream, buffer, used } => {
                buffer.drain(..*used);
                *used = 0;
                loop {
                    match turn::frame(buffer) {
                        Ok(Some((len, padded))) if buffer.len() >= padded => {
                            *used = padded;
                            return Ok(buffer.get(..len).unwrap_or_default());
                        }
                        Ok(_) => {}
                        Err(turn::NoFrame) => {
                            return Err(io::Error::new(
                                io::ErrorKind::InvalidData,
                                "this is not TURN",
                            ));
                        }
                    }
                    // Bounded: a message tells its length in 16 bits.
                    if stream.read_buf(buffer).await? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
            }
        }
    }

    async fn send(&mut self, message: &[u8]) -> io::Result<()> {
        match self {
            Self::Udp { socket, server, .. } => {
                // A new socket is not known to be writable yet: the first request would be lost.
                if !testing::udp_is_blocked(*server)
                    && let Err(error) = socket.send(message).await
                {
                    log::trace!("message to the TURN server dropped: {error}");
                }
                Ok(())
            }
            Self::Stream { stream, .. } => {
                let sending = async {
                    stream.write_all(message).await?;
                    stream.flush().await
                };
                timeout(SEND_WITHIN, sending).await.map_err(|_| io::ErrorKind::TimedOut)?
            }
        }
    }
}

async fn drive(
    mut relay: Relay,
    mut path: Path,
    order: &Order,
    local: SocketAddr,
    parcels: &mut mpsc::Receiver<Parcel>,
    findings: &mpsc::Sender<Finding>,
) -> Result<(), (u16, String)> {
    let mut address = None;
    let mut leave_at = None;
    loop {
        while let Some(message) = relay.poll_transmit() {
            if let Err(error) = path.send(&message).await {
                return lost(address, order, &error);
            }
        }
        while let Some(event) = relay.poll_event() {
            match event {
                RelayEvent::Allocated(relayed) => {
                    address = Some(relayed);
                    let found = Finding::Relayed { origin: order.origin, relayed, local };
                    if findings.send(found).await.is_err() {
                        relay.close(clock::now());
                    }
                }
                RelayEvent::Failed { code, text } => return Err((code, text)),
                RelayEvent::Gone => return Ok(()),
            }
        }
        let Some(timeout) = relay.poll_timeout() else { return Ok(()) };
        let timeout = leave_at.map_or(timeout, |at| timeout.min(at));
        tokio::select! {
            received = path.receive() => match received {
                Ok(message) => {
                    let relayed = relay.handle_message(clock::now(), message);
                    if let (Some((peer, data)), Some(to)) = (relayed, address) {
                        // Late sound is worth nothing: dropped when the connection is behind.
                        let _ = findings.try_send(Finding::Parcel { to, peer, data });
                    }
                }
                Err(error) => return lost(address, order, &error),
            },
            parcel = parcels.recv(), if leave_at.is_none() => {
                let now = clock::now();
                if let Some(Parcel { peer, data }) = parcel {
                    relay.send(now, peer, &data);
                } else {
                    leave_at = Some(now + GOODBYE_WITHIN);
                    relay.close(now);
                }
            }
            () = sleep_until(timeout.into()) => {
                let now = clock::now();
                if leave_at.is_some_and(|at| at <= now) {
                    return Ok(());
                }
                relay.handle_timeout(now);
            }
        }
    }
}

/// A lost path fails an attempt, but only ends what was there.
fn lost(
    address: Option<SocketAddr>,
    order: &Order,
    error: &io::Error,
) -> Result<(), (u16, String)> {
    match address {
        Some(_) => Ok(()),
        None => Err((turn::UNREACHABLE, describe(&order.url, error))),
    }
}
