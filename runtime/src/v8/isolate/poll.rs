//! Running what has become ready in an isolate: answers of host calls, timers, promise jobs; then the promises that
//! invocations wait for.

use std::task::{Context, Poll};

use deno_core::error::CoreErrorKind;
use deno_core::{PollEventLoopOptions, serde_v8, v8};

use super::Isolate;
use crate::invocation::{ErrorKind, InvokeError};
use crate::v8::convert;
use crate::v8::ops::Answer;

/// Rounds of host calls that end as soon as they begin, before others get their turn.
const MAX_ROUNDS: usize = 8;

impl Isolate {
    /// Runs what is ready: finished host calls, timers, promise jobs. `Ready` when nothing is pending any more, or with
    /// an error that no code caught.
    pub(in crate::v8) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), InvokeError>> {
        for _ in 0..MAX_ROUNDS {
            self.settle_host_calls(cx);
            let polled = self.js.poll_event_loop(cx, PollEventLoopOptions::default());
            self.log_rejections();
            let ended = self.take_settled();
            self.account.end_of_run();
            match polled {
                Poll::Ready(Err(error)) => {
                    return Poll::Ready(Err(match error.into_kind() {
                        CoreErrorKind::Js(error) => convert::js_error(*error),
                        error => InvokeError::new(ErrorKind::Exception, error.to_string()),
                    }));
                }
                // What ends an invocation may run code of the function.
                _ if ended => {}
                Poll::Ready(Ok(())) if self.pending.host_calls.pending() == 0 => return Poll::Ready(Ok(())),
                _ if !self.pending.host_calls.has_unpolled() => return Poll::Pending,
                _ => {}
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Whether a [`poll`](Self::poll) has something to do: host calls or timers are pending, an invocation waits for a
    /// promise, or a rejection has to be logged. Without any, only promise jobs can run, which the microtask checkpoint
    /// after each call has done.
    pub(in crate::v8) fn has_pending(&self) -> bool {
        self.pending.host_calls.pending() > 0
            || self.pending.timers() > 0
            || !self.awaited.is_empty()
            || !self.rejections.is_empty()
    }

    /// Hands the answers that have come to JavaScript.
    fn settle_host_calls(&mut self, cx: &mut Context<'_>) {
        let Some((mut id, mut outcome)) = self.pending.host_calls.poll(cx) else {
            return;
        };
        v8::scope_with_context!(scope, self.js.v8_isolate(), &self.context);
        v8::tc_scope!(let scope, scope);
        let settle = v8::Local::new(scope, &self.api.settle_host_call);
        let receiver = v8::undefined(scope).into();
        loop {
            let answer = Answer::new(outcome, &self.pending.host_calls);
            let id_value = v8::Integer::new_from_unsigned(scope, id).into();
            if let Ok(answer) = serde_v8::to_v8(scope, answer) {
                settle.call(scope, receiver, &[id_value, answer]);
            }
            if scope.has_terminated() {
                return;
            }
            scope.reset();
            match self.pending.host_calls.poll(cx) {
                Some(next) => (id, outcome) = next,
                None => break,
            }
        }
        scope.perform_microtask_checkpoint();
    }

    /// Promises that were rejected and that nobody handles go to the function's log: no call of it waits for them.
    fn log_rejections(&mut self) {
        // While the function loads, what its top level throws is one, too, and goes to whoever loads it.
        if self.rejections.is_empty() || self.handler.is_none() {
            return;
        }
        v8::scope_with_context!(scope, self.js.v8_isolate(), &self.context);
        v8::tc_scope!(let scope, scope);
        let log = v8::Local::new(scope, &self.api.log_rejection);
        let receiver = v8::undefined(scope).into();
        for promise in self.rejections.take() {
            let promise = v8::Local::new(scope, promise);
            // Marked by us: an invocation ends with it.
            if promise.has_handler() {
                continue;
            }
            let reason = promise.result(scope);
            log.call(scope, receiver, &[reason]);
            if scope.has_terminated() {
                return;
            }
            scope.reset();
        }
    }

    /// Ends the invocations whose promises have been settled. Returns whether there were any.
    fn take_settled(&mut self) -> bool {
        if self.awaited.is_empty() {
            return false;
        }
        let Some(host) = self.host.clone() else { return false };
        v8::scope_with_context!(scope, self.js.v8_isolate(), &self.context);
        v8::tc_scope!(let scope, scope);
        let mut ended = false;
        let mut index = 0;
        while let Some((key, promise)) = self.awaited.get(index) {
            let key = *key;
            let promise = v8::Local::new(scope, promise);
            if promise.state() == v8::PromiseState::Pending {
                index += 1;
                continue;
            }
            self.awaited.swap_remove(index);
            ended = true;
            match self.api.settle(scope, &*host, key, promise.into()) {
                Some(next) => self.awaited.push((key, next)),
                None => drop(self.pending.take_signal(key)),
            }
            if scope.has_terminated() {
                break;
            }
            scope.reset();
        }
        ended
    }

    /// Waits no longer for the promises of invocations: those that are left can never settle.
    pub(in crate::v8) fn forget_awaited(&mut self) {
        self.awaited.clear();
        self.pending.clear_signals();
    }

    /// Aborts `ctx.signal` of an invocation whose time is up, and waits no longer for its promise.
    pub(in crate::v8) fn abort(&mut self, key: u32, message: &str) {
        self.awaited.retain(|(other, _)| *other != key);
        let Some(controller) = self.pending.take_signal(key) else {
            return;
        };
        v8::scope_with_context!(scope, self.js.v8_isolate(), &self.context);
        v8::tc_scope!(let scope, scope);
        let controller = v8::Local::new(scope, controller).into();
        let Some(message) = v8::String::new(scope, message) else {
            return;
        };
        let receiver = v8::undefined(scope).into();
        v8::Local::new(scope, &self.api.abort).call(scope, receiver, &[controller, message.into()]);
    }
}
