//! Calling the function of an isolate.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use deno_core::{serde_v8, v8};

use super::{Api, Handler, Isolate};
use crate::invocation::{ErrorKind, InvokeError, Reply, Trigger};
use crate::v8::ops::OpHost;
use crate::v8::{convert, ops};

impl Isolate {
    /// Calls the function. Its result, or the exception, goes to the [`OpHost`], now or when its promise is settled.
    ///
    /// `key` names the invocation towards the host.
    pub(in crate::v8) fn call(&mut self, key: u32, deadline: Instant, trigger: &Trigger) {
        let Some(host) = self.host.clone() else { return };
        if let Some(code) = &mut self.code {
            code.count_call();
        }
        v8::scope_with_context!(scope, self.js.v8_isolate(), &self.context);
        v8::tc_scope!(let scope, scope);
        let subject = self.subject.value(scope, &trigger.subject);
        let result = self
            .handler
            .as_ref()
            .zip(subject)
            .and_then(|(handler, subject)| handler.call(scope, &self.api, key, deadline, subject, trigger));
        let awaited = result.and_then(|result| {
            if let Ok(promise) = v8::Local::<v8::Promise>::try_from(result) {
                // Most promises of functions need nothing but their turn.
                promise.mark_as_handled();
                scope.perform_microtask_checkpoint();
            }
            self.api.settle(scope, &*host, key, result)
        });
        if result.is_none() {
            fail(scope, &*host, key);
        }
        match awaited {
            Some(promise) => self.awaited.push((key, promise)),
            None => drop(self.pending.take_signal(key)),
        }
        if !scope.has_terminated() && !scope.is_execution_terminating() {
            scope.perform_microtask_checkpoint();
        }
        self.account.end_of_run();
    }
}

/// The subject of the last call, which most functions get every time.
#[derive(Default)]
pub(super) struct LastSubject {
    text: String,
    /// Once it has come twice in a row.
    value: Option<v8::Global<v8::String>>,
}

impl LastSubject {
    fn value<'s>(&mut self, scope: &v8::PinScope<'s, '_>, subject: &str) -> Option<v8::Local<'s, v8::String>> {
        let again = self.text == subject;
        if let Some(value) = self.value.as_ref().filter(|_| again) {
            return Some(v8::Local::new(scope, value));
        }
        let value = v8::String::new(scope, subject)?;
        self.value = again.then(|| v8::Global::new(scope, value));
        subject.clone_into(&mut self.text);
        Some(value)
    }
}

impl Api {
    /// Ends the invocation with a result, or gives the promise to wait for.
    pub(super) fn settle<'s>(
        &self,
        scope: &mut v8::PinnedRef<'_, v8::TryCatch<'_, 's, v8::HandleScope<'_>>>,
        host: &dyn OpHost,
        key: u32,
        mut value: v8::Local<'s, v8::Value>,
    ) -> Option<v8::Global<v8::Promise>> {
        let limit = host.limits().reply_bytes as usize;
        loop {
            if let Ok(promise) = v8::Local::<v8::Promise>::try_from(value) {
                promise.mark_as_handled();
                match promise.state() {
                    v8::PromiseState::Pending => return Some(v8::Global::new(scope, promise)),
                    v8::PromiseState::Fulfilled => value = promise.result(scope),
                    v8::PromiseState::Rejected => {
                        let reason = promise.result(scope);
                        let error = convert::exception(scope, reason);
                        host.finish(key, Err(error));
                        return None;
                    }
                }
            }
            if let Some(body) = convert::plain_body(scope, value, limit) {
                let outcome = body.map(Reply::from).map_err(|size| ops::reply_too_large(host, size));
                host.finish(key, outcome);
                return None;
            }
            // It needs the reply rules: they give a promise, a plain body, or `null` when they have ended it themselves.
            let id = v8::Integer::new_from_unsigned(scope, key).into();
            let receiver = v8::undefined(scope).into();
            let Some(next) = v8::Local::new(scope, &self.finish).call(scope, receiver, &[id, value]) else {
                fail(scope, host, key);
                return None;
            };
            if next.is_null() {
                return None;
            }
            value = next;
        }
    }
}

/// Ends the invocation with the exception that was thrown, if it was not terminated.
fn fail(scope: &mut v8::PinnedRef<'_, v8::TryCatch<'_, '_, v8::HandleScope<'_>>>, host: &dyn OpHost, key: u32) {
    if scope.has_terminated() {
        return;
    }
    let error = match scope.exception() {
        Some(thrown) => {
            scope.reset();
            convert::exception(scope, thrown)
        }
        None => InvokeError::new(ErrorKind::Exception, "the call gave neither a value nor an exception"),
    };
    host.finish(key, Err(error));
}

impl Handler {
    pub(super) fn call<'s>(
        &self,
        scope: &mut v8::PinScope<'s, '_>,
        api: &Api,
        key: u32,
        deadline: Instant,
        subject: v8::Local<'s, v8::String>,
        trigger: &Trigger,
    ) -> Option<v8::Local<'s, v8::Value>> {
        let subject = subject.into();
        let payload = convert::to_uint8_array(scope, &trigger.payload)?.into();
        match self {
            Self::Classic(function) => {
                let receiver = scope.get_current_context().global(scope).into();
                v8::Local::new(scope, function).call(scope, receiver, &[subject, payload])
            }
            Self::Module { function, receiver } => {
                let undefined: v8::Local<'_, v8::Value> = v8::undefined(scope).into();
                let reply = match &trigger.reply {
                    Some(reply) => v8::String::new(scope, reply)?.into(),
                    None => undefined,
                };
                let headers = if trigger.headers.is_empty() {
                    undefined
                } else {
                    serde_v8::to_v8(scope, &trigger.headers).ok()?
                };
                let arguments = [
                    v8::Local::new(scope, function).into(),
                    v8::Local::new(scope, receiver),
                    v8::Integer::new_from_unsigned(scope, key).into(),
                    v8::Number::new(scope, epoch_milliseconds(deadline)).into(),
                    subject,
                    reply,
                    headers,
                    payload,
                ];
                v8::Local::new(scope, &api.call_message).call(scope, undefined, &arguments)
            }
        }
    }
}

/// The deadline in milliseconds since 1970, as JavaScript counts time.
fn epoch_milliseconds(deadline: Instant) -> f64 {
    let left = deadline.saturating_duration_since(Instant::now());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    ((now + left).as_secs_f64() * 1000.0).round()
}
