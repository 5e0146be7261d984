//! What can go wrong at a provider, in one vocabulary for all doubles.
//!
//! Faults are used up in the order written: those of the opening one a connection (or request),
//! those of the stream one a stream (an answer, a connection's audio, a speech).

use std::{collections::VecDeque, time::Duration};

use axum::{
    Json,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::Value;

/// What goes wrong. `At` is how far a stream is: tokens for language models, audio for speech.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault<At> {
    /// Nothing, at the opening.
    Accept,
    /// Refused with this HTTP status.
    Refuse { status: u16, retry_after: Option<u64> },
    /// Answered late.
    Slow(Duration),
    /// Nothing, in the stream.
    None,
    /// The connection breaks without a goodbye.
    Disconnect(At),
    /// Nothing more comes of this stream; the connection stays.
    Stall(At),
    /// Nothing is read or answered any more on this connection, and nothing is closed.
    Dead(At),
    /// One message that cannot be read; then it goes on.
    Malformed(At),
    /// The provider says itself that it cannot go on.
    Fail(At),
    /// Each piece comes so much later than it should.
    Drip(Duration),
    /// Two pieces come in the wrong order.
    Disorder(At),
}

impl<At> Fault<At> {
    const fn is_of_opening(&self) -> bool {
        matches!(self, Self::Accept | Self::Refuse { .. } | Self::Slow(_))
    }
}

/// The faults of one double, to be used up.
#[derive(Debug, Clone)]
pub struct Faults<At> {
    next: VecDeque<Fault<At>>,
    /// Of every opening after those.
    always: Fault<At>,
}

impl<At> Default for Faults<At> {
    fn default() -> Self {
        Self { next: VecDeque::new(), always: Fault::Accept }
    }
}

impl<At: Copy> Faults<At> {
    /// Where a connection carries one stream: the next fault of either.
    pub fn take(&mut self) -> Fault<At> {
        self.next.pop_front().unwrap_or(self.always)
    }

    /// The next connection's.
    pub fn take_opening(&mut self) -> Fault<At> {
        self.take_where(Fault::is_of_opening).unwrap_or(self.always)
    }

    /// The next stream's on a connection.
    pub fn take_stream(&mut self) -> Fault<At> {
        self.take_where(|fault| !fault.is_of_opening()).unwrap_or(Fault::None)
    }

    fn take_where(&mut self, is: impl Fn(&Fault<At>) -> bool) -> Option<Fault<At>> {
        let at = self.next.iter().position(is)?;
        self.next.remove(at)
    }
}

/// A script that has faults.
pub trait Faulty: Sized {
    /// How far a stream is when something goes wrong.
    type At: Copy;

    fn faults(&mut self) -> &mut Faults<Self::At>;

    /// What goes wrong next.
    fn fault(mut self, fault: Fault<Self::At>) -> Self {
        self.faults().next.push_back(fault);
        self
    }

    /// The next connection or request is taken.
    fn accept(self) -> Self {
        self.fault(Fault::Accept)
    }

    /// The next connection or request is refused with this HTTP status.
    fn refuse(self, status: u16) -> Self {
        self.fault(Fault::Refuse { status, retry_after: None })
    }

    /// Refused with `Retry-After`, in s.
    fn refuse_for(self, status: u16, retry_after: u64) -> Self {
        self.fault(Fault::Refuse { status, retry_after: Some(retry_after) })
    }

    /// Every connection or request after the faults so far is refused.
    fn refuse_always(mut self, status: u16) -> Self {
        self.faults().always = Fault::Refuse { status, retry_after: None };
        self
    }

    /// Every connection or request after the faults so far is answered only after `delay`.
    fn slow_always(mut self, delay: Duration) -> Self {
        self.faults().always = Fault::Slow(delay);
        self
    }

    /// The next connection or request is answered only after `delay`.
    fn slow_connect(self, delay: Duration) -> Self {
        self.fault(Fault::Slow(delay))
    }

    /// The next stream is as it should be.
    fn sound(self) -> Self {
        self.fault(Fault::None)
    }

    /// The connection breaks without a goodbye at this point of the next stream.
    fn disconnect_after(self, at: Self::At) -> Self {
        self.fault(Fault::Disconnect(at))
    }

    /// The next stream stops coming there; the connection stays.
    fn stall_after(self, at: Self::At) -> Self {
        self.fault(Fault::Stall(at))
    }

    /// The connection neither reads nor answers any more from there.
    fn dead_after(self, at: Self::At) -> Self {
        self.fault(Fault::Dead(at))
    }

    /// A message that cannot be read comes there.
    fn malformed_after(self, at: Self::At) -> Self {
        self.fault(Fault::Malformed(at))
    }

    /// The provider tells there that it has failed.
    fn fail_after(self, at: Self::At) -> Self {
        self.fault(Fault::Fail(at))
    }

    /// Each piece of the next stream comes so much later.
    fn drip(self, delay: Duration) -> Self {
        self.fault(Fault::Drip(delay))
    }

    /// Two pieces of the next stream come in the wrong order there.
    fn disorder_after(self, at: Self::At) -> Self {
        self.fault(Fault::Disorder(at))
    }
}

/// A refusal with the provider's own words for it.
pub fn refusal(status: u16, retry_after: Option<u64>, body: Value) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = (status, Json(body)).into_response();
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Script(Faults<usize>);

    impl Faulty for Script {
        type At = usize;

        fn faults(&mut self) -> &mut Faults<usize> {
            &mut self.0
        }
    }

    #[test]
    fn openings_and_streams_are_used_up_apart() {
        let script = Script::default().stall_after(3).refuse(500).sound().refuse_always(401);
        let mut faults = script.0;
        assert_eq!(faults.take_opening(), Fault::Refuse { status: 500, retry_after: None });
        assert_eq!(faults.take_opening(), Fault::Refuse { status: 401, retry_after: None });
        assert_eq!(faults.take_stream(), Fault::Stall(3));
        assert_eq!(faults.take_stream(), Fault::None);
        assert_eq!(faults.take_stream(), Fault::None);
    }

    #[test]
    fn where_both_are_one_they_come_in_order() {
        let mut faults = Script::default().refuse(503).disconnect_after(2).accept().0;
        assert_eq!(faults.take(), Fault::Refuse { status: 503, retry_after: None });
        assert_eq!(faults.take(), Fault::Disconnect(2));
        assert_eq!([faults.take(), faults.take()], [Fault::Accept, Fault::Accept]);
    }
}
