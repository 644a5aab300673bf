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

    /// For a function that a pooled isolate does not suit: it is to have less heap or another stack. `None`: one does.
    pub(super) fn for_function(config: &V8Config, limits: &Limits) -> Option<Self> {
        let own = Self::new(limits.heap_bytes, limits.stack_bytes);
        let pooled = Self::pooled(config);
        (own.heap_bytes < pooled.heap_bytes || own.stack_bytes != pooled.stack_bytes).then_some(own)
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

    /// V8's parameters, for an isolate that is made and stays on the calling thread, whose stack has
    /// [`thread_stack_bytes`](Self::thread_stack_bytes).
    #[allow(unsafe_code, reason = "V8 takes the end of the stack as an address")]
    pub(super) fn create_params(&self) -> v8::CreateParams {
        let here = 0_u32;
        let limit = std::ptr::from_ref(&here).cast_mut().wrapping_byte_sub(self.stack_bytes);
        let params = v8::CreateParams::default().heap_limits(0, self.heap_bytes);
        // SAFETY: the address is within this thread's stack, NATIVE_STACK_BYTES (less what is in use now) from its end,
        // and V8 only compares it with its stack pointer.
        unsafe { params.set_stack_limit(limit) }
    }
}

thread_local! {
    /// The isolate of this thread, once it is guarded.
    static ISOLATE: Cell<Option<v8::UnsafeRawIsolatePtr>> = const { Cell::new(None) };
}

/// Watches the heap of an isolate that was given to a function, to which `account` belongs by now.
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
        let single = in_use < allowed / 10 * 9;
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
