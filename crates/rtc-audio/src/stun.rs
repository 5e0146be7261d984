//! Asking a STUN server for the address that others see (RFC 8489 §7, RFC 8445 §5.1.1.2), without
//! I/O.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use turn_client_proto::types::stun::attribute::XorMappedAddress;
use turn_client_proto::types::stun::message::{
    BINDING, Message, MessageClass, MessageWriteVec, TransactionId,
};
use turn_client_proto::types::stun::prelude::{MessageWrite, MessageWriteExt};

/// First wait for an answer; it doubles (RFC 8489 §6.2.1).
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// Requests sent at most: the last is given up after 500 · (2⁴ − 1) ms = 7.5 s.
const REQUESTS: u32 = 4;

/// What came of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Our address as the server sees it.
    Mapped(SocketAddr),
    /// The server refused, or answered with no address.
    Refused,
    /// There was no answer.
    Silent,
}

/// One request from one socket to one server.
#[derive(Debug)]
pub struct Binding {
    base: SocketAddr,
    server: SocketAddr,
    id: TransactionId,
    request: Vec<u8>,
    sent: u32,
    next: Instant,
}

impl Binding {
    /// Prepares a request from a socket's address to a server.
    pub fn new(now: Instant, base: SocketAddr, server: SocketAddr) -> Self {
        let builder = Message::builder_request(BINDING, MessageWriteVec::new());
        let id = builder.transaction_id();
        Self { base, server, id, request: builder.finish(), sent: 0, next: now }
    }

    /// The socket's address.
    pub fn base(&self) -> SocketAddr {
        self.base
    }

    /// The server's address.
    pub fn server(&self) -> SocketAddr {
        self.server
    }

    /// When [`Self::poll`] has something to say.
    pub fn deadline(&self) -> Instant {
        self.next
    }

    /// Gives the request when it is to be sent (again), or that there was no answer.
    pub fn poll(&mut self, now: Instant) -> Option<Result<&[u8], Outcome>> {
        if now < self.next {
            return None;
        }
        if self.sent >= REQUESTS {
            return Some(Err(Outcome::Silent));
        }
        self.next = now + FIRST_WAIT * 2_u32.pow(self.sent);
        self.sent += 1;
        Some(Ok(&self.request))
    }

    /// Takes a datagram. `None` when it is no answer to this request.
    pub fn handle(&self, source: SocketAddr, base: SocketAddr, data: &[u8]) -> Option<Outcome> {
        if source != self.server || base != self.base {
            return None;
        }
        let message = Message::from_bytes(data).ok()?;
        if message.transaction_id() != self.id || !message.has_method(BINDING) {
            return None;
        }
        match message.class() {
            MessageClass::Success => {
                let mapped = message.attribute::<XorMappedAddress>().ok();
                Some(mapped.map_or(Outcome::Refused, |m| Outcome::Mapped(m.addr(self.id))))
            }
            MessageClass::Error => Some(Outcome::Refused),
            MessageClass::Request | MessageClass::Indication => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn binding() -> (Instant, Binding) {
        #[allow(clippy::disallowed_methods, reason = "an arbitrary origin of virtual time")]
        let now = Instant::now();
        (now, Binding::new(now, address("10.0.0.1:5000"), address("192.0.2.1:3478")))
    }

    #[test]
    fn the_mapped_address_is_taken_from_the_right_answer_alone() {
        let (now, mut binding) = binding();
        let request = binding.poll(now).unwrap().unwrap().to_vec();
        let request = Message::from_bytes(&request).unwrap();
        let mut answer = Message::builder_success(&request, MessageWriteVec::new());
        let mapped = address("203.0.113.9:4242");
        answer.add_attribute(&XorMappedAddress::new(mapped, answer.transaction_id())).unwrap();
        let answer = answer.finish();
        let (server, base) = (binding.server(), binding.base());
        assert_eq!(binding.handle(server, base, &answer), Some(Outcome::Mapped(mapped)));
        assert_eq!(binding.handle(address("192.0.2.2:3478"), base, &answer), None);
        assert_eq!(binding.handle(server, address("10.0.0.2:5000"), &answer), None);
        let other = Message::builder_request(BINDING, MessageWriteVec::new()).finish();
        let other = Message::from_bytes(&other).unwrap();
        let other = Message::builder_success(&other, MessageWriteVec::new()).finish();
        assert_eq!(binding.handle(server, base, &other), None);
        assert_eq!(binding.handle(server, base, b"nonsense"), None);
    }

    #[test]
    fn a_silent_server_is_asked_four_times_and_given_up_in_eight_seconds() {
        let (start, mut binding) = binding();
        let mut requests = 0;
        loop {
            let now = binding.deadline();
            match binding.poll(now).unwrap() {
                Ok(_) => requests += 1,
                Err(outcome) => {
                    assert_eq!(outcome, Outcome::Silent);
                    assert!(now - start < Duration::from_secs(8));
                    break;
                }
            }
        }
        assert_eq!(requests, 4);
    }
}
