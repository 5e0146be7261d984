//! UDP sockets of one peer connection, one per address.
//!
//! They are *watched*, so that a datagram wakes the driver, or *polled*: read when the driver comes
//! by, which is how a call's steady packets come. A packet wakes nobody then, and since the kernel
//! says when it came, nothing is known of it later than it would have been of use.

use std::future::{pending, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use rtc_audio::net::Transmit;
use socket2::SockRef;
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;

use super::stamps::{self, Stamps};
use crate::testing;

/// A polled socket that had nothing so many times in a row rests, unless it is the one in use: however
/// long the other side is silent, what it says then is heard at once. It is more than a microphone's
/// pause between two packets of comfort noise (400 ms), for a check that comes to another address
/// meanwhile makes that the one in use.
const RESTS: u32 = 64;

/// One that rests is read every so many times only.
const SELDOM: u32 = 8;

/// One socket, in either way of reading it.
#[derive(Debug)]
enum Socket {
    Watched(UdpSocket),
    Polled(std::net::UdpSocket),
}

impl Socket {
    fn bind(ip: IpAddr) -> io::Result<(SocketAddr, Self)> {
        let socket = std::net::UdpSocket::bind((ip, 0))?;
        socket.set_nonblocking(true)?;
        stamps::enable(&socket);
        let address = socket.local_addr()?;
        Ok((address, Self::Watched(UdpSocket::from_std(socket)?)))
    }

    /// Sends now or not at all: a datagram that waits is worth less than the next one.
    fn send(&self, destination: SocketAddr, data: &[u8]) {
        if testing::udp_is_blocked(destination) {
            return;
        }
        let sent = match self {
            // Past tokio, which takes no datagram before it was told that the socket is writable: the
            // first ones after each turn to watching would be lost.
            Self::Watched(socket) => SockRef::from(socket).send_to(data, &destination.into()),
            Self::Polled(socket) => socket.send_to(data, destination),
        };
        if let Err(error) = sent {
            log::trace!("datagram to {destination} dropped: {error}");
        }
    }

    fn poll_receive(
        &self,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<(usize, SocketAddr)> {
        let Self::Watched(socket) = self else { return Poll::Pending };
        let mut read = ReadBuf::new(buffer);
        // An error (ICMP port unreachable) says nothing about the next datagram.
        while let Poll::Ready(result) = socket.poll_recv_from(context, &mut read) {
            if let Ok(source) = result
                && !testing::udp_is_blocked(source)
            {
                return Poll::Ready((read.filled().len(), source));
            }
            read.clear();
        }
        Poll::Pending
    }

    /// The other way of reading it. Where the system refuses to watch it, the socket is closed.
    fn turned(self, watched: bool) -> io::Result<Self> {
        match (self, watched) {
            (Self::Watched(socket), false) => Ok(Self::Polled(socket.into_std()?)),
            (Self::Polled(socket), true) => Ok(Self::Watched(UdpSocket::from_std(socket)?)),
            (socket, _) => Ok(socket),
        }
    }
}

/// A datagram that came: its length, its source, the address it came to, and when.
pub(super) type Received = (usize, SocketAddr, SocketAddr, Instant);

#[derive(Debug)]
struct Bound {
    address: SocketAddr,
    socket: Arc<Socket>,
    /// How often nothing was taken from it when it was its turn, since something was.
    empty: u32,
}

/// UDP sockets, one per address.
#[derive(Debug)]
pub(crate) struct UdpSockets {
    sockets: Vec<Bound>,
    first: usize,
    /// The address in use: the latest that anything came to.
    in_use: Option<SocketAddr>,
    watched: bool,
    stamps: Stamps,
}

/// The same sockets, to send from.
#[derive(Debug, Default)]
pub(crate) struct SharedSockets(Vec<(SocketAddr, Arc<Socket>)>);

impl SharedSockets {
    /// Sends now or not at all; gives whether there is such a source.
    pub(crate) fn send(&self, transmit: &Transmit) -> bool {
        let Transmit { source, destination, contents, .. } = transmit;
        let socket = self.0.iter().find(|(address, _)| address == source);
        socket.inspect(|(_, socket)| socket.send(*destination, contents)).is_some()
    }

    /// Lets go of them.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

impl UdpSockets {
    /// Binds a port on each of these addresses. Call it within the engine's runtime.
    pub(crate) fn bind(ips: &[IpAddr]) -> io::Result<Self> {
        let sockets = Vec::with_capacity(ips.len());
        let stamps = Stamps::default();
        let mut sockets = Self { sockets, first: 0, in_use: None, watched: true, stamps };
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
        let shared = self.sockets.iter().map(|bound| (bound.address, Arc::clone(&bound.socket)));
        SharedSockets(shared.collect())
    }

    /// Binds a port on one more address; `None` when there is one already.
    pub(crate) fn add(&mut self, ip: IpAddr) -> io::Result<Option<SocketAddr>> {
        if self.addresses().any(|address| address.ip() == ip) {
            return Ok(None);
        }
        let (address, socket) = Socket::bind(ip)?;
        let socket = Arc::new(socket.turned(self.watched)?);
        self.sockets.push(Bound { address, socket, empty: 0 });
        Ok(Some(address))
    }

    /// Closes all sockets but those on these addresses; gives the addresses of the closed.
    pub(crate) fn keep(&mut self, ips: &[IpAddr]) -> Vec<SocketAddr> {
        let all: Vec<SocketAddr> = self.addresses().collect();
        self.sockets.retain(|bound| ips.contains(&bound.address.ip()));
        self.first = 0;
        all.into_iter().filter(|address| !ips.contains(&address.ip())).collect()
    }

    /// The bound addresses.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.sockets.iter().map(|bound| bound.address)
    }

    /// Whether a datagram wakes the driver.
    pub(super) fn is_watched(&self) -> bool {
        self.watched
    }

    /// Lets datagrams wake the driver, or has it [`Self::poll`] for them. `shared` is what
    /// [`Self::shared`] gave: nobody else may hold on to the sockets.
    pub(super) fn watch(&mut self, watched: bool, shared: &mut SharedSockets) {
        if self.watched == watched || !(watched || stamps::AVAILABLE) {
            return;
        }
        self.watched = watched;
        shared.clear();
        let turn = |Bound { address, socket, .. }: Bound| {
            let socket = Arc::into_inner(socket)?;
            let turned = socket.turned(watched);
            turned
                .inspect_err(|error| log::warn!("the socket on {address} is lost: {error}"))
                .ok()
                .map(|socket| Bound { address, socket: Arc::new(socket), empty: 0 })
        };
        self.sockets = std::mem::take(&mut self.sockets).into_iter().filter_map(turn).collect();
        *shared = self.shared();
    }

    /// Waits for a datagram, while datagrams are watched for.
    pub(super) async fn receive(&mut self, buffer: &mut [u8]) -> Received {
        if !self.watched {
            return pending().await;
        }
        poll_fn(|context| {
            let count = self.sockets.len();
            for step in 0..count {
                let index = (self.first + step) % count;
                let Some(bound) = self.sockets.get(index) else { continue };
                if let Poll::Ready((len, source)) = bound.socket.poll_receive(context, buffer) {
                    let local = bound.address;
                    self.first = (index + 1) % count;
                    self.in_use = Some(local);
                    return Poll::Ready((len, source, local, super::clock::now()));
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Takes a datagram that is there already, never waiting: from the socket at `*at` on, which it
    /// moves on past those that have none.
    pub(super) fn poll(&mut self, at: &mut usize, buffer: &mut [u8]) -> Option<Received> {
        while let Some(bound) = self.sockets.get_mut(*at) {
            let next = bound.empty.saturating_add(1);
            let rests = bound.empty >= RESTS && self.in_use != Some(bound.address);
            if !self.watched && rests && !next.is_multiple_of(SELDOM) {
                bound.empty = next;
                *at += 1;
                continue;
            }
            let received = match &*bound.socket {
                Socket::Watched(socket) => {
                    let received = socket.try_recv_from(buffer).ok();
                    received.map(|(len, source)| (len, source, super::clock::now()))
                }
                Socket::Polled(socket) => self.stamps.receive(socket, buffer),
            };
            let Some((len, source, came)) = received else {
                bound.empty = next;
                *at += 1;
                continue;
            };
            bound.empty = 0;
            self.in_use = Some(bound.address);
            if !testing::udp_is_blocked(source) {
                return Some((len, source, bound.address, came));
            }
        }
        None
    }

    /// Sends now or not at all.
    pub(crate) fn send(&self, source: SocketAddr, destination: SocketAddr, data: &[u8]) {
        if let Some(bound) = self.sockets.iter().find(|bound| bound.address == source) {
            bound.socket.send(destination, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;
    use std::time::Duration;

    use super::super::clock;
    use super::*;

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([127, 0, 0, last])
    }

    #[tokio::test]
    async fn sockets_follow_the_addresses() {
        let mut sockets = UdpSockets::bind(&[ip(2), ip(3)]).unwrap();
        assert!(sockets.add(ip(2)).unwrap().is_none(), "there is one");
        let new = sockets.add(ip(4)).unwrap().unwrap();
        let gone = sockets.keep(&[ip(3), ip(4)]);
        assert_eq!(gone.iter().map(SocketAddr::ip).collect::<Vec<_>>(), [ip(2)]);
        let left = sockets.addresses().find(|a| a.ip() == ip(3)).unwrap();
        sockets.send(new, left, b"x");
        let mut buffer = [0; 10];
        let received = tokio::time::timeout(Duration::from_secs(5), sockets.receive(&mut buffer));
        let (len, source, local, _) = received.await.unwrap();
        assert_eq!((len, source, local), (1, new, left));
    }

    /// A datagram to these sockets while nobody looks: whether it wakes, and what it is taken for
    /// when somebody looks 20 ms later: how long it lay.
    async fn comes(sockets: &mut UdpSockets, to: SocketAddr) -> (bool, Duration) {
        let sent = clock::now();
        let from = std::net::UdpSocket::bind((to.ip(), 0)).unwrap();
        from.send_to(b"hello", to).unwrap();
        let mut buffer = [0; 10];
        let woken = tokio::time::timeout(Duration::from_millis(20), sockets.receive(&mut buffer));
        let woken = woken.await.ok();
        let wakes = woken.is_some();
        let (len, source, local, at) = woken.or_else(|| sockets.poll(&mut 0, &mut buffer)).unwrap();
        assert_eq!(
            (&buffer[..len], source, local),
            (&b"hello"[..], from.local_addr().unwrap(), to)
        );
        assert!(at >= sent, "before it was sent");
        assert!(sockets.poll(&mut 0, &mut buffer).is_none());
        (wakes, clock::now() - at)
    }

    #[tokio::test]
    async fn a_polled_datagram_wakes_nobody_and_has_the_time_when_it_came() {
        if !stamps::AVAILABLE {
            return;
        }
        let mut ips = vec![ip(5)];
        // Where the host has no IPv6 there is nothing to try.
        if std::net::UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
            ips.push(Ipv6Addr::LOCALHOST.into());
        }
        let mut sockets = UdpSockets::bind(&ips).unwrap();
        let mut shared = sockets.shared();
        let addresses: Vec<SocketAddr> = sockets.addresses().collect();
        for watched in [true, false, true, false] {
            sockets.watch(watched, &mut shared);
            for address in &addresses {
                let (mut wakes, mut lay) = comes(&mut sockets, *address).await;
                // The kernel takes a moment to begin with its stamps.
                let limit = clock::now() + Duration::from_secs(10);
                while !watched && lay < Duration::from_millis(15) {
                    assert!(clock::now() < limit, "it has the time when it was read: {lay:?}");
                    (wakes, lay) = comes(&mut sockets, *address).await;
                }
                assert_eq!(wakes, watched);
            }
        }
        assert_eq!(sockets.addresses().collect::<Vec<_>>(), addresses);
        assert_eq!(shared.0.len(), addresses.len());
    }

    #[tokio::test]
    async fn what_is_sent_before_the_reactor_knows_the_socket_goes_out() {
        let listener = std::net::UdpSocket::bind((ip(8), 0)).unwrap();
        listener.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut sockets = UdpSockets::bind(&[ip(8)]).unwrap();
        let source = sockets.addresses().next().unwrap();
        let mut shared = sockets.shared();
        for watched in [true, false, true] {
            sockets.watch(watched, &mut shared);
            sockets.send(source, listener.local_addr().unwrap(), b"x");
            let mut buffer = [0; 10];
            assert_eq!(listener.recv_from(&mut buffer).unwrap(), (1, source), "{watched}");
        }
    }

    #[tokio::test]
    async fn a_socket_that_is_out_of_use_is_polled_seldom_and_one_in_use_always() {
        if !stamps::AVAILABLE {
            return;
        }
        let mut sockets = UdpSockets::bind(&[ip(6), ip(7)]).unwrap();
        let mut shared = sockets.shared();
        sockets.watch(false, &mut shared);
        let addresses: Vec<SocketAddr> = sockets.addresses().collect();
        let from = std::net::UdpSocket::bind((ip(6), 0)).unwrap();
        let round = |sockets: &mut UdpSockets| {
            let mut at = 0;
            let poll = || sockets.poll(&mut at, &mut [0; 10]).map(|(_, _, local, _)| local);
            std::iter::from_fn(poll).collect::<Vec<_>>()
        };
        for _ in 0..2 * RESTS {
            from.send_to(b"x", addresses[0]).unwrap();
            assert_eq!(round(&mut sockets), [addresses[0]]);
        }
        for _ in 0..2 * RESTS {
            assert!(round(&mut sockets).is_empty());
        }
        from.send_to(b"x", addresses[0]).unwrap();
        assert_eq!(round(&mut sockets), [addresses[0]], "in use, silent as it was");
        from.send_to(b"x", addresses[1]).unwrap();
        let rounds = (1..=SELDOM).find(|_| round(&mut sockets) == [addresses[1]]).unwrap();
        assert!(rounds > 1, "{rounds}");
        from.send_to(b"x", addresses[1]).unwrap();
        assert_eq!(round(&mut sockets), [addresses[1]], "it is in use again");
        for _ in 0..20 {
            assert!(round(&mut sockets).is_empty());
        }
        from.send_to(b"x", addresses[0]).unwrap();
        assert_eq!(round(&mut sockets), [addresses[0]], "it was in use 400 ms ago");
    }
}
