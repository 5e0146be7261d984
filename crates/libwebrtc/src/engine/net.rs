//! Sockets of one peer connection: UDP on its addresses, TCP outwards.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use rtc_audio::net::Transmit;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader, ReadBuf};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::testing;

/// The largest frame that RFC 4571 §2 can tell.
const MAX_FRAME: usize = u16::MAX as usize;
const TCP_QUEUE: usize = 256;
const TCP_CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// How long a refused TCP address is left alone.
const TCP_RETRY_AFTER: Duration = Duration::from_secs(1);

/// UDP sockets, one per address.
#[derive(Debug)]
pub(crate) struct UdpSockets {
    sockets: Vec<(SocketAddr, Arc<UdpSocket>)>,
    first: usize,
}

/// The same sockets, to send from.
#[derive(Debug)]
pub(crate) struct SharedSockets(Vec<(SocketAddr, Arc<UdpSocket>)>);

impl SharedSockets {
    /// Sends now or not at all; gives whether there is such a source.
    pub(crate) fn send(&self, transmit: &Transmit) -> bool {
        let Transmit { source, destination, contents, .. } = transmit;
        let socket = self.0.iter().find(|(address, _)| address == source);
        socket.inspect(|(_, socket)| send_on(socket, *destination, contents)).is_some()
    }

    /// Lets go of them.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

impl UdpSockets {
    /// Binds a port on each of these addresses. Call it within the engine's runtime.
    pub(crate) fn bind(ips: &[IpAddr]) -> io::Result<Self> {
        let mut sockets = Self { sockets: Vec::with_capacity(ips.len()), first: 0 };
        let mut failure = None;
        for ip in ips {
            if let Err(error) = sockets.add(*ip) {
                log::debug!("no socket on {ip}: {error}");
                failure = Some(error);
            }
        }
        match failure {
            Some(error) if sockets.sockets.is_empty() => Err(error),
            _ => Ok(sockets),
        }
    }

    /// These sockets as they are now, for another to send from.
    pub(crate) fn shared(&self) -> SharedSockets {
        SharedSockets(self.sockets.clone())
    }

    /// Binds a port on one more address; `None` when there is one already.
    pub(crate) fn add(&mut self, ip: IpAddr) -> io::Result<Option<SocketAddr>> {
        if self.addresses().any(|address| address.ip() == ip) {
            return Ok(None);
        }
        let (address, socket) = bind_udp(ip)?;
        self.sockets.push((address, socket));
        Ok(Some(address))
    }

    /// Closes all sockets but those on these addresses; gives the addresses of the closed.
    pub(crate) fn keep(&mut self, ips: &[IpAddr]) -> Vec<SocketAddr> {
        let all: Vec<SocketAddr> = self.addresses().collect();
        self.sockets.retain(|(address, _)| ips.contains(&address.ip()));
        self.first = 0;
        all.into_iter().filter(|address| !ips.contains(&address.ip())).collect()
    }

    /// The bound addresses.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.sockets.iter().map(|(address, _)| *address)
    }

    /// Waits for a datagram; gives its length, its source and the address it came to.
    pub(crate) async fn receive(&mut self, buffer: &mut [u8]) -> (usize, SocketAddr, SocketAddr) {
        poll_fn(|context| {
            let count = self.sockets.len();
            for step in 0..count {
                let index = (self.first + step) % count;
                let Some((local, socket)) = self.sockets.get(index) else { continue };
                let mut read = ReadBuf::new(buffer);
                // An error (ICMP port unreachable) says nothing about the next datagram.
                while let Poll::Ready(result) = socket.poll_recv_from(context, &mut read) {
                    if let Ok(source) = result {
                        if testing::udp_is_blocked(source) {
                            read.clear();
                            continue;
                        }
                        let len = read.filled().len();
                        let local = *local;
                        self.first = (index + 1) % count;
                        return Poll::Ready((len, source, local));
                    }
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Takes a datagram that is there already.
    pub(crate) fn try_receive(&self, buffer: &mut [u8]) -> Option<(usize, SocketAddr, SocketAddr)> {
        self.sockets.iter().find_map(|(local, socket)| {
            let (len, source) = socket.try_recv_from(buffer).ok()?;
            (!testing::udp_is_blocked(source)).then_some((len, source, *local))
        })
    }

    /// Sends now or not at all: a datagram that waits is worth less than the next one.
    pub(crate) fn send(&self, source: SocketAddr, destination: SocketAddr, data: &[u8]) {
        let socket = self.sockets.iter().find(|(address, _)| *address == source);
        if let Some((_, socket)) = socket {
            send_on(socket, destination, data);
        }
    }
}

fn send_on(socket: &UdpSocket, destination: SocketAddr, data: &[u8]) {
    if !testing::udp_is_blocked(destination)
        && let Err(error) = socket.try_send_to(data, destination)
    {
        log::trace!("datagram to {destination} dropped: {error}");
    }
}

fn bind_udp(ip: IpAddr) -> io::Result<(SocketAddr, Arc<UdpSocket>)> {
    let socket = std::net::UdpSocket::bind((ip, 0))?;
    socket.set_nonblocking(true)?;
    let address = socket.local_addr()?;
    Ok((address, Arc::new(UdpSocket::from_std(socket)?)))
}

/// What a TCP connection brought.
#[derive(Debug)]
pub(crate) enum TcpEvent {
    /// A frame came.
    Frame {
        /// The local candidate's address.
        local: SocketAddr,
        /// The server's address.
        remote: SocketAddr,
        /// The frame without its length.
        data: Vec<u8>,
    },
    /// The connection is gone.
    Gone {
        /// The local candidate's address.
        local: SocketAddr,
        /// The server's address.
        remote: SocketAddr,
    },
}

enum Link {
    Up(mpsc::Sender<Vec<u8>>),
    Refused(Instant),
}

/// Outgoing TCP connections with RFC 4571 framing (ICE-TCP, RFC 6544, active side).
pub(crate) struct TcpLinks {
    links: HashMap<(SocketAddr, SocketAddr), Link>,
    events: mpsc::Sender<TcpEvent>,
    incoming: mpsc::Receiver<TcpEvent>,
}

impl TcpLinks {
    pub(crate) fn new() -> Self {
        let (events, incoming) = mpsc::channel(TCP_QUEUE);
        Self { links: HashMap::new(), events, incoming }
    }

    /// Queues a frame, connecting first where needed. Dropped when the queue is full.
    pub(crate) fn send(
        &mut self,
        local: SocketAddr,
        remote: SocketAddr,
        data: &[u8],
        now: Instant,
    ) {
        let key = (local, remote);
        let refused =
            matches!(self.links.get(&key), Some(Link::Refused(at)) if now < *at + TCP_RETRY_AFTER);
        if refused || data.len() > MAX_FRAME {
            return;
        }
        if !matches!(self.links.get(&key), Some(Link::Up(_))) {
            let (sender, frames) = mpsc::channel(TCP_QUEUE);
            tokio::spawn(run_link(local, remote, frames, self.events.clone()));
            self.links.insert(key, Link::Up(sender));
        }
        if let Some(Link::Up(sender)) = self.links.get(&key) {
            let mut frame = Vec::with_capacity(data.len() + 2);
            frame.extend_from_slice(&(data.len() as u16).to_be_bytes());
            frame.extend_from_slice(data);
            if sender.try_send(frame).is_err() {
                log::trace!("frame to {remote} dropped");
            }
        }
    }

    /// Waits for something to come.
    pub(crate) async fn receive(&mut self) -> Option<TcpEvent> {
        self.incoming.recv().await
    }

    /// Forgets a connection that is gone.
    pub(crate) fn forget(&mut self, local: SocketAddr, remote: SocketAddr, now: Instant) {
        self.links.insert((local, remote), Link::Refused(now));
    }
}

async fn run_link(
    local: SocketAddr,
    remote: SocketAddr,
    mut frames: mpsc::Receiver<Vec<u8>>,
    events: mpsc::Sender<TcpEvent>,
) {
    if let Ok(Ok(stream)) = timeout(TCP_CONNECT_WITHIN, connect(local.ip(), remote)).await {
        log::debug!("connected to {remote} over TCP");
        let (reader, mut writer) = stream.into_split();
        let write = async {
            while let Some(frame) = frames.recv().await {
                if writer.write_all(&frame).await.is_err() {
                    break;
                }
            }
        };
        tokio::select! {
            () = write => {}
            () = read_frames(BufReader::new(reader), local, remote, &events) => {}
        }
    }
    // Nobody listens any more when the peer connection is closed.
    let _ = events.send(TcpEvent::Gone { local, remote }).await;
}

async fn read_frames(
    mut reader: impl AsyncReadExt + Unpin,
    local: SocketAddr,
    remote: SocketAddr,
    events: &mpsc::Sender<TcpEvent>,
) {
    while let Ok(len) = reader.read_u16().await {
        let mut data = vec![0; usize::from(len)];
        if reader.read_exact(&mut data).await.is_err() {
            break;
        }
        if events.send(TcpEvent::Frame { local, remote, data }).await.is_err() {
            break;
        }
    }
}

async fn connect(local: IpAddr, remote: SocketAddr) -> io::Result<TcpStream> {
    let socket = if remote.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A host with several addresses must use the one that the candidate names.
    if let Err(error) = socket.bind(SocketAddr::new(local, 0)) {
        log::debug!("TCP from {local}: {error}");
    }
    let stream = socket.connect(remote).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use tokio::net::TcpListener;

    use super::super::clock;
    use super::*;

    /// Sends a frame to a listener on this address, and one back.
    async fn there_and_back(ip: IpAddr) {
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        let (local, remote) = (SocketAddr::new(ip, 9), listener.local_addr().unwrap());
        let mut links = TcpLinks::new();
        links.send(local, remote, b"hello", clock::now());
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut frame = [0; 7];
        stream.read_exact(&mut frame).await.unwrap();
        assert_eq!(&frame, b"\0\x05hello");
        stream.write_all(b"\0\x03yes").await.unwrap();
        let Some(TcpEvent::Frame { data, .. }) = links.receive().await else { panic!("no frame") };
        assert_eq!(data, b"yes");
        drop(stream);
        assert!(matches!(links.receive().await, Some(TcpEvent::Gone { .. })));
    }

    #[tokio::test]
    async fn frames_go_to_and_fro_over_tcp_in_both_families() {
        there_and_back(Ipv4Addr::LOCALHOST.into()).await;
        // Where the host has no IPv6 there is nothing to try.
        if std::net::UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
            there_and_back(Ipv6Addr::LOCALHOST.into()).await;
        }
    }

    #[tokio::test]
    async fn sockets_follow_the_addresses() {
        let ip = |last| IpAddr::from([127, 0, 0, last]);
        let mut sockets = UdpSockets::bind(&[ip(2), ip(3)]).unwrap();
        assert!(sockets.add(ip(2)).unwrap().is_none(), "there is one");
        let new = sockets.add(ip(4)).unwrap().unwrap();
        let gone = sockets.keep(&[ip(3), ip(4)]);
        assert_eq!(gone.iter().map(SocketAddr::ip).collect::<Vec<_>>(), [ip(2)]);
        let left = sockets.addresses().find(|a| a.ip() == ip(3)).unwrap();
        for (_, socket) in &sockets.sockets {
            socket.writable().await.unwrap();
        }
        sockets.send(new, left, b"x");
        let mut buffer = [0; 10];
        assert_eq!(sockets.receive(&mut buffer).await, (1, new, left));
    }
}
