//! The JavaScript heap and the stack of an isolate: how they are sized for a function, and what happens at their ends.
//!
//! V8 gives up when its heap is full (see [`super::fatal`]), so near the limit the code is terminated and gets some room
//! to end in. A thread whose code uses that up, too, is parked inside V8, where it holds no lock that others need.

use std::cell::Cell;
use std::sync::Arc;

use deno_core::{JsRuntime, v8};

use super::V8Config;
use super::buffers::{self, Account};
use super::fatal;
use crate::engine::{Limit, LimitHit, Limits};

/// Room that code near the heap limit gets to end in. Where a single allocation does not fit, as much as the limit again:
/// V8 gives up when it cannot have it, but code is stopped right after it has it.
const HEADROOM_BYTES: usize = 32 << 20;

/// Stack of an isolate's thread beyond what JavaScript may use: V8's own C++ code, ops, and what they call.
const NATIVE_STACK_BYTES: usize = 3 << 20;

/// What an isolate is made with and cannot be changed later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct IsolateParams {
    /// Bytes of JavaScript heap, at first; [`guard`] raises it for functions that may have more.
    heap_bytes: usize,
    /// Bytes of stack for JavaScript.
    stack_bytes: usize,
}

impl IsolateParams {
    /// For the blank isolates of the pool.
    pub(super) fn pooled(config: &V8Config) -> Self {
        Self::new(config.heap_bytes, config.stack_bytes)
    }

    /// For a function that a pooled isolate does not suit: it is to have less heap or more stack. `None`: one does.
    pub(super) fn for_function(config: &V8Config, limits: &Limits) -> Option<Self> {
        let own = Self::new(limits.heap_bytes, limits.stack_bytes);
        let pooled = Self::pooled(config);
        (own.heap_bytes < pooled.heap_bytes || own.stack_bytes > pooled.stack_bytes).then_some(own)
    }

    fn new(heap_bytes: u64, stack_bytes: u32) -> Self {
        let stack_bytes = stack_bytes.clamp(Limits::MIN_STACK_BYTES, Limits::MAX_STACK_BYTES);
        Self {
            heap_bytes: usize::try_from(heap_bytes.max(Limits::MIN_HEAP_BYTES)).unwrap_or(usize::MAX),
            stack_bytes: usize::try_from(stack_bytes).unwrap_or(usize::MAX),
        }
    }

    /// Bytes of stack that the isolate's thread needs.
    pub(super) fn thread_stack_bytes(&self) -> usize {
        self.stack_bytes + NATIVE_STACK_BYTES
    }

    /// V8's parameters.
    pub(super) fn create_params(&self) -> v8::CreateParams {
        v8::CreateParams::default().heap_limits(0, self.heap_bytes)
    }
}

#[allow(unsafe_code, reason = "a function of V8 that its Rust bindings do not carry")]
unsafe extern "C" {
    /// `v8::Isolate::SetStackLimit`: recursion ends below this address.
    #[link_name = "_ZN2v87Isolate13SetStackLimitEm"]
    fn set_stack_limit(isolate: v8::UnsafeRawIsolatePtr, limit: usize);
}

/// Limits the stack of JavaScript from here on, on this thread, whose isolate it is and whose stack has room for it. (V8
/// forgets a limit that it is given with the parameters.)
#[allow(unsafe_code, reason = "V8 takes the end of the stack as an address")]
fn limit_stack(isolate: &mut v8::Isolate, params: IsolateParams, limits: &Limits) {
    let here = 0_u8;
    let bytes = IsolateParams::new(limits.heap_bytes, limits.stack_bytes).stack_bytes;
    let limit = std::ptr::from_ref(&here).addr() - bytes.min(params.stack_bytes);
    // SAFETY: the address is within this thread's stack, NATIVE_STACK_BYTES (less what is in use now) from its end, and V8
    // only compares it with its stack pointer.
    unsafe { set_stack_limit(isolate.as_raw_isolate_ptr(), limit) };
}

thread_local! {
    /// The isolate of this thread, once it is guarded.
    static ISOLATE: Cell<Option<v8::UnsafeRawIsolatePtr>> = const { Cell::new(None) };
}

/// Limits heap and stack of an isolate that was given to a function, to which `account` belongs by now. Called on the
/// isolate's thread, near the bottom of its stack.
#[allow(unsafe_code, reason = "keeps the isolate for callbacks that get none")]
pub(super) fn guard(js: &mut JsRuntime, params: IsolateParams, limits: &Limits, account: &Arc<Account>) {
    let limit = usize::try_from(limits.heap_bytes).unwrap_or(usize::MAX);
    let more = limit.saturating_sub(params.heap_bytes);
    let account = Arc::clone(account);
    let mut ended = false;
    js.add_near_heap_limit_callback(move |current, initial| {
        // V8 counts without the young generation here, so that only differences compare with our figures.
        let full = initial.saturating_add(more);
        if current < full {
            return full;
        }
        let Some(owner) = account.owner() else {
            return current.saturating_add(HEADROOM_BYTES);
        };
        if ended {
            owner.beyond_rescue("the function goes on to allocate after it was terminated for it");
            fatal::park();
        }
        let in_use = heap_in_use();
        let allowed = account.heap_limit();
        let single = in_use < allowed / 4 * 3;
        // V8 also asks, as its last resort, when a buffer was refused.
        if single && account.is_retrying() {
            return current;
        }
        ended = true;
        owner.out_of_memory(LimitHit {
            limit: Limit::HeapBytes,
            allowed,
            // Where the heap is not full, a single allocation is too large for what is left, by a byte at least.
            measured: in_use.max(account.large_refused()).max(allowed + 1),
        });
        let headroom = if single {
            limit.max(HEADROOM_BYTES)
        } else {
            HEADROOM_BYTES
        };
        account.add_headroom(headroom as u64);
        current.saturating_add(headroom)
    });
    let isolate = js.v8_isolate();
    limit_stack(isolate, params, limits);
    fatal::watch(isolate);
    buffers::check_after_collections(isolate);
    // SAFETY: see `heap_in_use`, the only use.
    ISOLATE.set(Some(unsafe { isolate.as_raw_isolate_ptr() }));
}

/// Bytes that the heap of this thread's isolate takes.
#[allow(unsafe_code, reason = "callbacks get no isolate")]
fn heap_in_use() -> u64 {
    ISOLATE.get().map_or(0, |isolate| {
        // SAFETY: `guard` was given this isolate, which lives and dies on this thread, and V8 is inside it: it has called
        // us.
        let mut isolate = unsafe { v8::Isolate::from_raw_isolate_ptr(isolate) };
        isolate.get_heap_statistics().total_heap_size() as u64
    })
}
