//! TCP connections of one peer connection, outwards.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// The largest frame that RFC 4571 §2 can tell.
const MAX_FRAME: usize = u16::MAX as usize;
const TCP_QUEUE: usize = 256;
const TCP_CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// How long a connection may refuse to take a frame.
const WRITE_WITHIN: Duration = Duration::from_secs(5);
/// How long a refused TCP address is left alone.
const TCP_RETRY_AFTER: Duration = Duration::from_secs(1);

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
        /// Which of those between the two.
        link: u64,
        /// The local candidate's address.
        local: SocketAddr,
        /// The server's address.
        remote: SocketAddr,
    },
}

enum Link {
    Up(u64, mpsc::Sender<Vec<u8>>),
    Refused(Instant),
}

/// Outgoing TCP connections with RFC 4571 framing (ICE-TCP, RFC 6544, active side).
pub(crate) struct TcpLinks {
    links: HashMap<(SocketAddr, SocketAddr), Link>,
    events: mpsc::Sender<TcpEvent>,
    incoming: mpsc::Receiver<TcpEvent>,
    last: u64,
}

impl TcpLinks {
    pub(crate) fn new() -> Self {
        let (events, incoming) = mpsc::channel(TCP_QUEUE);
        Self { links: HashMap::new(), events, incoming, last: 0 }
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
        if !matches!(self.links.get(&key), Some(Link::Up(..))) {
            self.last += 1;
            let (sender, frames) = mpsc::channel(TCP_QUEUE);
            tokio::spawn(run_link(self.last, local, remote, frames, self.events.clone()));
            self.links.insert(key, Link::Up(self.last, sender));
        }
        if let Some(Link::Up(_, sender)) = self.links.get(&key) {
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
    pub(crate) fn forget(
        &mut self,
        link: u64,
        local: SocketAddr,
        remote: SocketAddr,
        now: Instant,
    ) {
        if let Some(known) = self.links.get_mut(&(local, remote))
            && matches!(known, Link::Up(current, _) if *current == link)
        {
            *known = Link::Refused(now);
        }
    }

    /// Ends the connections from these addresses: what is sent from there next connects anew.
    pub(crate) fn end(&mut self, is_ended: impl Fn(IpAddr) -> bool) {
        self.links.retain(|(local, _), _| !is_ended(local.ip()));
    }
}

async fn run_link(
    link: u64,
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
                // A path that swallows all would hold this task for as long as TCP hopes.
                if !matches!(timeout(WRITE_WITHIN, writer.write_all(&frame)).await, Ok(Ok(()))) {
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
    let _ = events.send(TcpEvent::Gone { link, local, remote }).await;
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
    async fn a_connection_that_was_ended_is_not_taken_for_the_one_that_follows_it() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let remote = listener.local_addr().unwrap();
        let local = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 9);
        let mut links = TcpLinks::new();
        links.send(local, remote, b"one", clock::now());
        let (mut first, _) = listener.accept().await.unwrap();
        links.end(|ip| ip == local.ip());
        links.send(local, remote, b"two", clock::now());
        let (mut second, _) = listener.accept().await.unwrap();
        let mut frame = Vec::new();
        first.read_to_end(&mut frame).await.unwrap();
        assert_eq!(frame, b"\0\x03one");
        let Some(TcpEvent::Gone { link, .. }) = links.receive().await else { panic!("it ends") };
        links.forget(link, local, remote, clock::now());
        links.send(local, remote, b"three", clock::now());
        let mut frames = [0; 12];
        second.read_exact(&mut frames).await.unwrap();
        assert_eq!(&frames, b"\0\x03two\0\x05three");
    }

    #[tokio::test]
    async fn frames_go_to_and_fro_over_tcp_in_both_families() {
        there_and_back(Ipv4Addr::LOCALHOST.into()).await;
        // Where the host has no IPv6 there is nothing to try.
        if std::net::UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
            there_and_back(Ipv6Addr::LOCALHOST.into()).await;
        }
    }
}
