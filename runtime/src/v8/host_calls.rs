//! The host calls of one isolate that have begun and not ended. Bounded in number and in bytes before anything is copied,
//! polled together with the isolate, abandoned with it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::LocalBoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};

use crate::host_services::{HostError, HostErrorCode, HostRequest, HostResponse, HostServices};

/// Bytes of payload that the pending calls of one isolate may hold together, and therefore one of them alone: what the
/// largest frame of a link carries.
pub(crate) const MAX_PENDING_BYTES: usize = 64 << 20;

pub(crate) type Outcome = Result<HostResponse, HostError>;

/// See the module.
#[derive(Default)]
pub(crate) struct HostCalls {
    usage: Rc<Usage>,
    running: RefCell<FuturesUnordered<LocalBoxFuture<'static, (u32, Outcome)>>>,
    /// Calls begun since the last poll, which nobody will be woken for.
    unpolled: Cell<bool>,
    /// Payload of the answer that JavaScript was given last, until it has made room for it and takes it.
    answer: RefCell<Bytes>,
}

#[derive(Default)]
struct Usage {
    calls: Cell<u32>,
    bytes: Cell<usize>,
}

/// The place of one pending call; dropping it gives it back.
pub(crate) struct Place {
    usage: Rc<Usage>,
    bytes: usize,
}

/// Why a call may not begin.
pub(crate) enum Refused {
    /// There are as many as may be, or this many with the one that was refused.
    Calls(u32),
    /// The pending payloads would have this many bytes.
    Bytes(usize),
}

impl HostCalls {
    /// Calls begun and not settled, the synchronous one included.
    pub(crate) fn pending(&self) -> u32 {
        self.usage.calls.get()
    }

    /// Whether a call was begun that was not polled yet.
    pub(crate) fn has_unpolled(&self) -> bool {
        self.unpolled.get()
    }

    /// A place for a call with so many bytes of payload, if there are fewer than `limit`.
    pub(crate) fn place(&self, bytes: usize, limit: u32) -> Result<Place, Refused> {
        let calls = self.usage.calls.get();
        if calls >= limit {
            return Err(Refused::Calls(calls.saturating_add(1)));
        }
        let all = self.usage.bytes.get().saturating_add(bytes);
        if all > MAX_PENDING_BYTES {
            return Err(Refused::Bytes(all));
        }
        self.usage.calls.set(calls + 1);
        self.usage.bytes.set(all);
        Ok(Place {
            usage: Rc::clone(&self.usage),
            bytes,
        })
    }

    /// Begins a call; its outcome comes out of [`poll`](Self::poll) under the name `id`.
    pub(crate) fn begin(&self, id: u32, place: Place, services: &dyn HostServices, request: HostRequest) {
        let call = services.call(request);
        let call = async move {
            let outcome = call.await;
            drop(place);
            (id, outcome)
        };
        self.running.borrow_mut().push(call.boxed_local());
        self.unpolled.set(true);
    }

    /// The next call that has ended.
    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Option<(u32, Outcome)> {
        self.unpolled.set(false);
        match self.running.borrow_mut().poll_next_unpin(cx) {
            Poll::Ready(ended) => ended,
            Poll::Pending => None,
        }
    }

    /// Keeps the payload of an answer for [`take_answer`](Self::take_answer). Returns its length.
    pub(crate) fn keep_answer(&self, payload: Bytes) -> usize {
        let len = payload.len();
        *self.answer.borrow_mut() = payload;
        len
    }

    /// The payload kept last.
    pub(crate) fn take_answer(&self) -> Bytes {
        self.answer.take()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Usage { calls, bytes } = &*self.usage;
        calls.set(calls.get().saturating_sub(1));
        bytes.set(bytes.get().saturating_sub(self.bytes));
    }
}

impl Refused {
    /// The error that the function gets.
    pub(crate) fn into_error(self, limit: u32) -> HostError {
        let message = match self {
            Self::Calls(_) => format!("{limit} host calls are pending already, which is the limit"),
            Self::Bytes(bytes) => format!(
                "the payloads of the pending host calls would have {bytes} bytes, the limit is {MAX_PENDING_BYTES}"
            ),
        };
        HostError::new(HostErrorCode::LimitExceeded, message)
    }
}
