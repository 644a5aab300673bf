//! Calling the function of an isolate.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use deno_core::{serde_v8, v8};

use super::{Api, Handler, Isolate};
use crate::invocation::{ErrorKind, InvokeError, Reply, Trigger};
use crate::v8::convert;

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
        let result = self
            .handler
            .as_ref()
            .and_then(|handler| handler.call(scope, &self.api, key, deadline, trigger));
        let plain = result.and_then(|value| convert::plain_body(scope, value));
        let settled = match (result, plain) {
            (_, Some(body)) => {
                host.finish(key, Ok(Reply::from(body)));
                Some(())
            }
            (Some(value), None) => {
                let key = v8::Integer::new_from_unsigned(scope, key).into();
                let receiver = v8::undefined(scope).into();
                v8::Local::new(scope, &self.api.finish)
                    .call(scope, receiver, &[key, value])
                    .map(drop)
            }
            (None, None) => None,
        };
        if settled.is_none() && !scope.has_terminated() {
            let error = match scope.exception() {
                Some(thrown) => convert::exception(scope, thrown),
                None => InvokeError::new(ErrorKind::Exception, "the call gave neither a value nor an exception"),
            };
            host.finish(key, Err(error));
        }
        scope.reset();
        scope.perform_microtask_checkpoint();
    }
}

impl Handler {
    fn call<'s>(
        &self,
        scope: &mut v8::PinScope<'s, '_>,
        api: &Api,
        key: u32,
        deadline: Instant,
        trigger: &Trigger,
    ) -> Option<v8::Local<'s, v8::Value>> {
        let subject = v8::String::new(scope, &trigger.subject)?.into();
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
