//! The ops: everything that JavaScript can ask of Rust. They need nothing but an [`OpHost`], so that the build script
//! compiles this very file to put the same ops into the start-up snapshot.
//!
//! What is counted here is counted out of the function's reach, and checked before anything is copied.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use deno_core::{OpState, op2, v8};
use deno_error::JsErrorBox;
use serde::Serialize;

use super::convert::{self, TooLarge};
use super::host_calls::{HostCalls, MAX_PENDING_BYTES, Outcome, Place, Refused};
use crate::engine::{Limit, LimitHit, Limits};
use crate::host_services::{Headers, HostError, HostErrorCode, HostRequest, HostResult, HostServices, Operation};
use crate::invocation::{ErrorKind, InvokeError, Reply};
use crate::logs::{self, LogLevel, LogLine, MAX_LOG_LINE};

/// What the ops of an isolate act on; in the isolate's `OpState` as `Rc<dyn OpHost>` once it belongs to a function.
pub(crate) trait OpHost {
    /// The function's host services.
    fn services(&self) -> &Arc<dyn HostServices>;
    /// Its limits.
    fn limits(&self) -> &Limits;
    /// It hit one that lets it go on.
    fn limit_hit(&self, hit: LimitHit);
    /// Whether a line of its log may pass, so that one that may not need not be written. It counts as dropped.
    fn log_open(&self) -> bool;
    /// One line of its log, after [`log_open`](Self::log_open) has said that it may pass.
    fn log(&self, line: LogLine);
    /// When the running code must have ended.
    fn deadline(&self) -> Instant;
    /// A streamed reply of an invocation.
    fn stream(&self, id: u32, reply: Reply);
    /// The end of an invocation.
    fn finish(&self, id: u32, outcome: Result<Reply, InvokeError>);
    /// A `waitUntil` promise came (`true`) or was settled.
    fn wait_until(&self, begun: bool);
}

/// What is pending in an isolate beside its invocations; in its `OpState`.
#[derive(Default)]
pub(crate) struct Pending {
    pub(crate) host_calls: HostCalls,
    timers: Cell<u32>,
    /// The abort controllers of invocations whose `signal` was taken.
    signals: RefCell<HashMap<u32, v8::Global<v8::Object>>>,
}

impl Pending {
    /// Timers that have not fired or repeat.
    pub(crate) fn timers(&self) -> u32 {
        self.timers.get()
    }

    /// The abort controller of an invocation that has ended.
    pub(crate) fn take_signal(&self, id: u32) -> Option<v8::Global<v8::Object>> {
        self.signals.borrow_mut().remove(&id)
    }

    /// Forgets all of them.
    pub(crate) fn clear_signals(&self) {
        self.signals.borrow_mut().clear();
    }
}

deno_core::extension!(
    nex,
    ops = [
        op_nex_host_call_sync,
        op_nex_host_call,
        op_nex_take_payload,
        op_nex_encode_into,
        op_nex_timer_begin,
        op_nex_timer_end,
        op_nex_log_open,
        op_nex_log,
        op_nex_head,
        op_nex_stream,
        op_nex_finish,
        op_nex_fail,
        op_nex_wait_until,
        op_nex_signal,
    ],
    js = [
        dir "src/v8/js",
        "console.js",
        "abort_signal.js",
        "message.js",
        "host_services.js",
        "timers.js",
        "function_api.js",
    ],
    state = |state| state.put(Rc::new(Pending::default())),
);

/// How late the watchdog may be, at most, in ending an invocation whose time is up.
const WATCHDOG_SLACK: Duration = Duration::from_millis(100);

fn host(state: &OpState) -> Rc<dyn OpHost> {
    state.borrow::<Rc<dyn OpHost>>().clone()
}

fn pending(state: &OpState) -> &Rc<Pending> {
    state.borrow::<Rc<Pending>>()
}

/// What a host call gives JavaScript: the result and the length of the payload, which it makes room for and then
/// [takes](op_nex_take_payload), or the code and the message of an error.
#[derive(Serialize)]
pub(crate) struct Answer(Option<HostResult>, usize, Option<&'static str>, Option<String>);

impl Answer {
    pub(crate) fn new(outcome: Outcome, host_calls: &HostCalls) -> Self {
        match outcome {
            Ok(response) => Self(
                Some(response.result),
                host_calls.keep_answer(response.payload),
                None,
                None,
            ),
            Err(error) => Self(None, 0, Some(error.code.as_str()), Some(error.message)),
        }
    }
}

/// A place for the call and its request, or why not; nothing is copied before there is a place.
fn admit<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    state: &OpState,
    operation: Operation,
    payload: v8::Local<'s, v8::Value>,
) -> Result<(Place, HostRequest), HostError> {
    let host = host(state);
    let limit = host.limits().host_calls;
    let bytes = convert::byte_length(scope, payload, MAX_PENDING_BYTES);
    let place = pending(state).host_calls.place(bytes, limit).map_err(|refused| {
        if let Refused::Calls(measured) = refused {
            host.limit_hit(LimitHit {
                limit: Limit::HostCalls,
                allowed: limit.into(),
                measured: measured.into(),
            });
        }
        refused.into_error(limit)
    })?;
    let payload = convert::bytes(scope, payload);
    Ok((place, HostRequest { operation, payload }))
}

#[op2]
#[serde]
fn op_nex_host_call_sync<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    state: &mut OpState,
    #[serde] operation: Operation,
    payload: v8::Local<'s, v8::Value>,
) -> Answer {
    let outcome = admit(scope, state, operation, payload).and_then(|(_place, request)| {
        let host = host(state);
        let call = host.services().call(request);
        // The watchdog is to end the invocation when its time is up, and not this call a moment before it.
        block_until(call, || host.deadline() + WATCHDOG_SLACK)
            .unwrap_or_else(|| Err(HostError::new(HostErrorCode::Timeout, "the invocation's time is up")))
    });
    Answer::new(outcome, &pending(state).host_calls)
}

/// Begins a call, whose answer the engine hands to JavaScript under the name `id`; gives the answer at once when the call
/// may not begin.
#[op2]
#[serde]
fn op_nex_host_call<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    state: &mut OpState,
    #[smi] id: u32,
    #[serde] operation: Operation,
    payload: v8::Local<'s, v8::Value>,
) -> Option<Answer> {
    let host_calls = &pending(state).host_calls;
    match admit(scope, state, operation, payload) {
        Ok((place, request)) => {
            host_calls.begin(id, place, &**host(state).services(), request);
            None
        }
        Err(error) => Some(Answer::new(Err(error), host_calls)),
    }
}

/// Copies the payload of the last answer into the room made for it.
#[op2(fast)]
fn op_nex_take_payload(state: &mut OpState, #[buffer] room: &mut [u8]) {
    let payload = pending(state).host_calls.take_answer();
    if room.len() == payload.len() {
        room.copy_from_slice(&payload);
    }
}

/// Writes a string as UTF-8 into the room made for it.
#[op2(fast)]
fn op_nex_encode_into<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    text: v8::Local<'s, v8::String>,
    #[buffer] room: &mut [u8],
) {
    text.write_utf8_v2(scope, room, v8::WriteFlags::kReplaceInvalidUtf8, None);
}

/// A timer begins.
#[op2(fast)]
fn op_nex_timer_begin(state: &mut OpState) -> Result<(), JsErrorBox> {
    let timers = &pending(state).timers;
    let host = host(state);
    let limit = host.limits().timers;
    if timers.get() >= limit {
        host.limit_hit(LimitHit {
            limit: Limit::Timers,
            allowed: limit.into(),
            measured: u64::from(limit) + 1,
        });
        let message = format!("{limit} timers are pending already, which is the limit");
        return Err(JsErrorBox::range_error(message));
    }
    timers.set(timers.get() + 1);
    Ok(())
}

/// A timer has ended.
#[op2(fast)]
fn op_nex_timer_end(state: &mut OpState) {
    let timers = &pending(state).timers;
    timers.set(timers.get().saturating_sub(1));
}

#[op2(fast)]
fn op_nex_log_open(state: &mut OpState) -> bool {
    host(state).log_open()
}

/// A line for which `op_nex_log_open` has said that it may pass.
#[op2(fast)]
fn op_nex_log<'s>(scope: &mut v8::PinScope<'s, '_>, state: &mut OpState, level: u8, text: v8::Local<'s, v8::String>) {
    let level = match level {
        0 => LogLevel::Trace,
        1 => LogLevel::Debug,
        2 => LogLevel::Info,
        3 => LogLevel::Warn,
        _ => LogLevel::Error,
    };
    let head = convert::head(scope, text, MAX_LOG_LINE);
    let mut text = logs::printable(head.text);
    let end = text.char_indices().nth(MAX_LOG_LINE).map(|(end, _)| end);
    text.truncate(end.unwrap_or(text.len()));
    if head.cut || end.is_some() {
        text.push_str("\u{2026} (cut)");
    }
    host(state).log(LogLine { level, text });
}

/// The first units of a string, without putting together the rest of it.
#[op2]
fn op_nex_head<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    text: v8::Local<'s, v8::String>,
    #[smi] units: u32,
) -> v8::Local<'s, v8::String> {
    let mut head = vec![0; text.length().min(units as usize)];
    text.write_v2(scope, 0, &mut head, v8::WriteFlags::empty());
    v8::String::new_from_two_byte(scope, &head, v8::NewStringType::Normal).unwrap_or(text)
}

/// One reply of many. `false` when it was too large, which ends the invocation.
#[op2]
fn op_nex_stream<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    state: &mut OpState,
    #[smi] id: u32,
    body: v8::Local<'s, v8::Value>,
    #[serde] headers: Option<Headers>,
) -> bool {
    let host = host(state);
    match reply(scope, &*host, body, headers) {
        Ok(reply) => {
            host.stream(id, reply);
            true
        }
        Err(error) => {
            host.finish(id, Err(error));
            false
        }
    }
}

#[op2]
fn op_nex_finish<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    state: &mut OpState,
    #[smi] id: u32,
    body: v8::Local<'s, v8::Value>,
    #[serde] headers: Option<Headers>,
) {
    let host = host(state);
    let outcome = reply(scope, &*host, body, headers);
    host.finish(id, outcome);
}

fn reply<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    host: &dyn OpHost,
    body: v8::Local<'s, v8::Value>,
    headers: Option<Headers>,
) -> Result<Reply, InvokeError> {
    let limit = host.limits().reply_bytes as usize;
    let body = convert::plain_body(scope, body, limit).transpose();
    Ok(Reply {
        headers: headers.unwrap_or_default(),
        body: body.map_err(|size| reply_too_large(host, size))?.unwrap_or_default(),
    })
}

/// The error of a reply that was refused, which it reports, too.
pub(crate) fn reply_too_large(host: &dyn OpHost, TooLarge(bytes): TooLarge) -> InvokeError {
    let limit = host.limits().reply_bytes;
    host.limit_hit(LimitHit {
        limit: Limit::ReplyBytes,
        allowed: limit.into(),
        measured: bytes as u64,
    });
    let message = format!("the reply has {bytes} bytes, the limit is {limit}");
    InvokeError::new(ErrorKind::PayloadTooLarge, message)
}

// Taking the error apart runs the function's code (a getter), which may call other ops: the state must not be borrowed
// meanwhile.
#[op2(fast, reentrant)]
fn op_nex_fail<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    state: Rc<RefCell<OpState>>,
    #[smi] id: u32,
    error: v8::Local<'s, v8::Value>,
) {
    let error = convert::exception(scope, error);
    let host = host(&state.borrow());
    host.finish(id, Err(error));
}

#[op2(fast)]
fn op_nex_wait_until(state: &mut OpState, begun: bool) {
    host(state).wait_until(begun);
}

/// The `signal` of an invocation was taken: aborting this is to abort it.
#[op2(fast)]
fn op_nex_signal<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    state: &mut OpState,
    #[smi] id: u32,
    controller: v8::Local<'s, v8::Object>,
) {
    let controller = v8::Global::new(scope, controller);
    pending(state).signals.borrow_mut().insert(id, controller);
}

/// Polls the future on this thread until it is done or its time is up (`None`), which may turn out to be sooner than it
/// was when it began.
///
/// The isolate's own runtime stands still meanwhile, which is what a synchronous call means; the future is driven by
/// its own reactor elsewhere, as [`HostServices::call`] demands.
fn block_until<F: Future>(future: F, deadline: impl Fn() -> Instant) -> Option<F::Output> {
    /// Well below the time that terminated code has to end.
    const LOOK_EVERY: Duration = Duration::from_millis(50);

    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Some(output);
        }
        let left = deadline().checked_duration_since(Instant::now())?;
        thread::park_timeout(left.min(LOOK_EVERY));
    }
}
