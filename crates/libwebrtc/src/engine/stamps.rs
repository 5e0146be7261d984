//! When a datagram came, as the kernel saw it (`SO_TIMESTAMPNS`, socket(7)).

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

pub(super) use system::{AVAILABLE, Stamps, enable};

/// A datagram that lay for longer was not polled for, or the clock was set meanwhile.
const OLDEST: Duration = Duration::from_millis(100);

/// Length, source and when it came.
type Stamped = (usize, SocketAddr, Instant);

#[cfg(target_os = "linux")]
mod system {
    use std::io::IoSliceMut;
    use std::os::fd::AsRawFd;

    use nix::sys::socket::{
        ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt,
    };
    use nix::sys::time::TimeSpec;

    use super::super::clock;
    use super::{Duration, OLDEST, SocketAddr, Stamped, UdpSocket, io};

    /// Whether this system can tell.
    pub(in super::super) const AVAILABLE: bool = true;

    /// Has the datagrams that come to this socket stamped.
    pub(in super::super) fn enable(socket: &UdpSocket) {
        if let Err(error) = setsockopt(socket, sockopt::ReceiveTimestampns, &true) {
            log::debug!("datagrams are not stamped: {error}");
        }
    }

    /// Reads stamped datagrams; the space for stamps is allocated once.
    #[derive(Debug)]
    pub(in super::super) struct Stamps(Vec<u8>);

    impl Default for Stamps {
        fn default() -> Self {
            Self(nix::cmsg_space!(TimeSpec))
        }
    }

    impl Stamps {
        /// Takes a datagram that is there. Errors of the network (ICMP) are passed over.
        pub(in super::super) fn receive(
            &mut self,
            socket: &UdpSocket,
            buffer: &mut [u8],
        ) -> Option<Stamped> {
            loop {
                match self.try_receive(socket, buffer) {
                    Ok(received) => return received,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                    // Each is told once.
                    Err(error) => log::trace!("{error}"),
                }
            }
        }

        fn try_receive(
            &mut self,
            socket: &UdpSocket,
            buffer: &mut [u8],
        ) -> io::Result<Option<Stamped>> {
            let mut slices = [IoSliceMut::new(buffer)];
            let fd = socket.as_raw_fd();
            let flags = MsgFlags::MSG_DONTWAIT;
            let message = recvmsg::<SockaddrStorage>(fd, &mut slices, Some(&mut self.0), flags)?;
            let stamp = message.cmsgs()?.find_map(|control| match control {
                ControlMessageOwned::ScmTimestampns(stamp) => Some(Duration::from(stamp)),
                _ => None,
            });
            let (now, unix) = (clock::now(), clock::since_unix());
            let age = stamp.map(|stamp| unix.saturating_sub(stamp));
            let at = now.checked_sub(age.filter(|age| *age <= OLDEST).unwrap_or_default());
            let source = message.address.as_ref().and_then(address);
            Ok(source.map(|source| (message.bytes, source, at.unwrap_or(now))))
        }
    }

    fn address(storage: &SockaddrStorage) -> Option<SocketAddr> {
        let v4 = storage.as_sockaddr_in().map(|v4| SocketAddr::V4((*v4).into()));
        v4.or_else(|| storage.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into())))
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use super::{Stamped, UdpSocket};

    /// Whether this system can tell.
    pub(in super::super) const AVAILABLE: bool = false;

    pub(in super::super) fn enable(_socket: &UdpSocket) {}

    #[derive(Debug, Default)]
    pub(in super::super) struct Stamps;

    impl Stamps {
        pub(in super::super) fn receive(
            &mut self,
            socket: &UdpSocket,
            buffer: &mut [u8],
        ) -> Option<Stamped> {
            let (len, source) = socket.recv_from(buffer).ok()?;
            Some((len, source, super::super::clock::now()))
        }
    }
}
