//! The ops: everything that JavaScript can ask of Rust. They need nothing but an [`OpHost`], so that the build script
//! compiles this very file to put the same ops into the start-up snapshot.

use std::borrow::Cow;
use std::cell::RefCell;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use bytes::Bytes;
use deno_core::{OpState, ToJsBuffer, op2, v8};
use deno_error::{AdditionalProperties, JsErrorClass, PropertyValue};
use serde::Serialize;

use super::convert;
use crate::host_services::{
    Headers, HostError, HostErrorCode, HostRequest, HostResponse, HostResult, HostServices, Operation,
};
use crate::invocation::{InvokeError, Reply};
use crate::logs::{LogLevel, LogLine, MAX_LOG_LINE};

/// What the ops of an isolate act on; in the isolate's `OpState` as `Rc<dyn OpHost>` once it belongs to a function.
pub(crate) trait OpHost {
    /// The function's host services.
    fn services(&self) -> &Arc<dyn HostServices>;
    /// One line of its log.
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

deno_core::extension!(
    nex,
    ops = [
        op_nex_host_call_sync,
        op_nex_host_call,
        op_nex_log,
        op_nex_stream,
        op_nex_finish,
        op_nex_fail,
        op_nex_wait_until,
    ],
    js = [dir "src/v8/js", "console.js", "abort_signal.js", "host_services.js", "function_api.js"],
);

/// How late the watchdog may be, at most, in ending an invocation whose time is up.
const WATCHDOG_SLACK: Duration = Duration::from_millis(100);

fn host(state: &OpState) -> Rc<dyn OpHost> {
    state.borrow::<Rc<dyn OpHost>>().clone()
}

/// A [`HostError`] as the JavaScript class `HostServiceError` with a property `code`.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.message)]
struct HostServiceError(#[from] HostError);

impl JsErrorClass for HostServiceError {
    fn get_class(&self) -> Cow<'static, str> {
        "HostServiceError".into()
    }
    fn get_message(&self) -> Cow<'static, str> {
        self.0.message.clone().into()
    }
    fn get_additional_properties(&self) -> AdditionalProperties {
        Box::new(std::iter::once((
            "code".into(),
            PropertyValue::String(self.0.code.as_str().into()),
        )))
    }
    fn get_ref(&self) -> &(dyn std::error::Error + Send + Sync + 'static) {
        self
    }
}

/// What a host call gives JavaScript: `[result, payload]`.
#[derive(Serialize)]
struct HostAnswer(HostResult, ToJsBuffer);

impl From<HostResponse> for HostAnswer {
    fn from(response: HostResponse) -> Self {
        Self(response.result, response.payload.to_vec().into())
    }
}

#[op2]
#[serde]
fn op_nex_host_call_sync(
    state: &mut OpState,
    #[serde] operation: Operation,
    #[buffer(copy)] payload: Bytes,
) -> Result<HostAnswer, HostServiceError> {
    let host = host(state);
    let call = host.services().call(HostRequest { operation, payload });
    // The watchdog is to end the invocation when its time is up, and not this call a moment before it.
    let response = block_until(call, host.deadline() + WATCHDOG_SLACK)
        .unwrap_or_else(|| Err(HostError::new(HostErrorCode::Timeout, "the invocation's time is up")))?;
    Ok(response.into())
}

#[op2]
#[serde]
async fn op_nex_host_call(
    state: Rc<RefCell<OpState>>,
    #[serde] operation: Operation,
    #[buffer(copy)] payload: Bytes,
) -> Result<HostAnswer, HostServiceError> {
    let call = host(&state.borrow())
        .services()
        .call(HostRequest { operation, payload });
    Ok(call.await?.into())
}

#[op2(fast)]
fn op_nex_log(state: &mut OpState, level: u8, #[string] text: &str) {
    let level = match level {
        0 => LogLevel::Trace,
        1 => LogLevel::Debug,
        2 => LogLevel::Info,
        3 => LogLevel::Warn,
        _ => LogLevel::Error,
    };
    host(state).log(LogLine { level, text: cut(text) });
}

/// The text, or its first [`MAX_LOG_LINE`] characters and a mark.
fn cut(text: &str) -> String {
    match text.char_indices().nth(MAX_LOG_LINE) {
        Some((end, _)) => format!("{}… (cut)", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

#[op2]
fn op_nex_stream<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    state: &mut OpState,
    #[smi] id: u32,
    body: v8::Local<'s, v8::Value>,
    #[serde] headers: Option<Headers>,
) {
    host(state).stream(id, reply(scope, body, headers));
}

#[op2]
fn op_nex_finish<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    state: &mut OpState,
    #[smi] id: u32,
    body: v8::Local<'s, v8::Value>,
    #[serde] headers: Option<Headers>,
) {
    host(state).finish(id, Ok(reply(scope, body, headers)));
}

fn reply<'s>(scope: &mut v8::PinScope<'s, '_>, body: v8::Local<'s, v8::Value>, headers: Option<Headers>) -> Reply {
    Reply {
        headers: headers.unwrap_or_default(),
        body: convert::plain_body(scope, body).unwrap_or_default(),
    }
}

// Taking the error apart runs the function's code (a getter, a custom stack), which may call other ops: the state must
// not be borrowed meanwhile.
#[op2(fast, reentrant)]
fn op_nex_fail<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    state: Rc<RefCell<OpState>>,
    #[smi] id: u32,
    error: v8::Local<'s, v8::Value>,
) {
    let error = convert::exception(scope, error);
    host(&state.borrow()).finish(id, Err(error));
}

#[op2(fast)]
fn op_nex_wait_until(state: &mut OpState, begun: bool) {
    host(state).wait_until(begun);
}

/// Polls the future on this thread until it is done or the deadline has passed (`None`).
///
/// The isolate's own runtime stands still meanwhile, which is what a synchronous call means; the future is driven by
/// its own reactor elsewhere, as [`HostServices::call`] demands.
fn block_until<F: Future>(future: F, deadline: Instant) -> Option<F::Output> {
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
        let left = deadline.checked_duration_since(Instant::now())?;
        thread::park_timeout(left);
    }
}
