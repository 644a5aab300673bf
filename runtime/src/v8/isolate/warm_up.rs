//! What a blank isolate does before it belongs to a function: everything that a start and a first call do, with a function
//! of ours. V8 sets up its parser, its compiler and its heap pages at first use, and no start should have to wait for that.

use std::time::Instant;

use deno_core::v8;

use super::{Api, Handler};
use crate::invocation::Trigger;

const FUNCTION: &str = "(() => { class A { #b = 1; c() { return this.#b } } return `${new A().c()}` })";

/// Goes the way of a start and of a first call in both forms. Nothing of it can be seen later: what it assigns, each
/// function's start assigns anew. `None` when V8 threw.
pub(super) fn run(scope: &mut v8::PinScope<'_, '_>, api: &Api) -> Option<()> {
    let undefined: v8::Local<'_, v8::Value> = v8::undefined(scope).into();
    let id = v8::String::empty(scope).into();
    let vars = v8::Object::new(scope).into();
    v8::Local::new(scope, &api.assign).call(scope, undefined, &[id, vars])?;
    let source = v8::String::new(scope, FUNCTION)?;
    let function = v8::Script::compile(scope, source, None)?.run(scope)?;
    let function = v8::Local::<v8::Function>::try_from(function).ok()?;
    let function = v8::Global::new(scope, function);
    let receiver = v8::Global::new(scope, undefined);
    // Without payload, which would count as the function's memory.
    let trigger = Trigger::default();
    for handler in [
        Handler::Classic(function.clone()),
        Handler::Module { function, receiver },
    ] {
        let subject = v8::String::empty(scope);
        handler.call(scope, api, 0, Instant::now(), subject, &trigger)?;
    }
    scope.perform_microtask_checkpoint();
    Some(())
}
