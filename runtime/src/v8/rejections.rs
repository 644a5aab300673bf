//! Promises that were rejected and that nobody handles. deno_core's own list is searched from end to end for each handler
//! that comes late and handed to JavaScript as one call's arguments, which a function can make last for minutes; this one
//! is bounded.

use std::cell::RefCell;
use std::collections::HashMap;
use std::mem;
use std::rc::{Rc, Weak};

use deno_core::v8;

/// Rejections kept until the end of the turn, in which a handler may still come; more are not heard of.
const MAX_KEPT: usize = 1_000;

/// Those of one isolate.
#[derive(Default)]
pub(super) struct Rejections(RefCell<Kept>);

#[derive(Default)]
struct Kept {
    /// In order; `None` for those handled meanwhile.
    promises: Vec<Option<v8::Global<v8::Promise>>>,
    /// Their places by identity hash, which two may share.
    places: HashMap<i32, Vec<usize>>,
}

impl Rejections {
    /// Has the isolate tell of rejections from now on.
    pub(super) fn hook(isolate: &mut v8::Isolate) -> Rc<Self> {
        let rejections = Rc::new(Self::default());
        isolate.set_slot(Rc::downgrade(&rejections));
        isolate.set_promise_reject_callback(on_reject);
        rejections
    }

    /// Whether there are any.
    pub(super) fn is_empty(&self) -> bool {
        self.0.borrow().promises.is_empty()
    }

    /// Those that nobody has handled, oldest first.
    pub(super) fn take(&self) -> impl Iterator<Item = v8::Global<v8::Promise>> + use<> {
        mem::take(&mut *self.0.borrow_mut()).promises.into_iter().flatten()
    }

    fn rejected(&self, scope: &v8::PinScope<'_, '_>, promise: v8::Local<'_, v8::Promise>) {
        let mut kept = self.0.borrow_mut();
        let place = kept.promises.len();
        if place < MAX_KEPT {
            kept.promises.push(Some(v8::Global::new(scope, promise)));
            let hash = promise.get_identity_hash().get();
            kept.places.entry(hash).or_default().push(place);
        }
    }

    fn handled(&self, scope: &v8::PinScope<'_, '_>, promise: v8::Local<'_, v8::Promise>) {
        let mut kept = self.0.borrow_mut();
        let Kept { promises, places } = &mut *kept;
        let places = places.get(&promise.get_identity_hash().get());
        for place in places.into_iter().flatten() {
            if let Some(slot) = promises.get_mut(*place)
                && slot.as_ref().is_some_and(|kept| v8::Local::new(scope, kept) == promise)
            {
                *slot = None;
            }
        }
    }
}

#[allow(unsafe_code, reason = "V8 hands its callback a message from which a scope is made")]
extern "C" fn on_reject(message: v8::PromiseRejectMessage<'_>) {
    // SAFETY: the message comes from V8, which calls this inside the isolate that it is about.
    v8::callback_scope!(unsafe scope, &message);
    let Some(rejections) = scope.get_slot::<Weak<Rejections>>().and_then(Weak::upgrade) else {
        return;
    };
    match message.get_event() {
        v8::PromiseRejectEvent::PromiseRejectWithNoHandler => rejections.rejected(scope, message.get_promise()),
        v8::PromiseRejectEvent::PromiseHandlerAddedAfterReject => rejections.handled(scope, message.get_promise()),
        _ => {}
    }
}
