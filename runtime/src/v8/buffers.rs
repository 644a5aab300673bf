//! Counts what an isolate holds outside of V8's heap: `ArrayBuffer`s, through an allocator of ours, and WebAssembly
//! memories and resizable buffers, which V8 takes from its page allocator instead (see `pages`).
//!
//! What the function asks for is refused beyond its limit, so that it gets a `RangeError` or, from `memory.grow`, a -1.
//! What the host gives it (payloads, answers of host calls) cannot be refused, because V8 aborts when Rust asks in vain;
//! it is counted all the same, and an isolate that is [`OVERRUN_BYTES`] beyond its limit that way is ended. Before that
//! its garbage is collected: V8 does not do so in time for payloads that follow each other.

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc};
use std::cell::RefCell;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use deno_core::v8;

use crate::engine::{Limit, LimitHit, Limits};

/// How far beyond its limit an isolate may get by what cannot be refused.
const OVERRUN_BYTES: u64 = 32 << 20;
/// Least time between two reports of refusals.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// How often V8 asks for one buffer, collecting garbage in between, the last time with all means.
pub(crate) const ATTEMPTS: u32 = 4;
/// What `malloc` guarantees, too: V8 expects no less of a buffer.
const ALIGNMENT: usize = 16;

/// The function an isolate belongs to, as far as memory goes. Called on the isolate's thread, inside V8: nothing of V8
/// may be called but `terminate_execution`.
pub(crate) trait MemoryOwner: Send + Sync {
    /// A soft limit was hit; the code goes on.
    fn limit_hit(&self, hit: LimitHit);
    /// A hard limit was hit: ends the instance and answers its callers. The code still runs when this returns, and may
    /// hit limits again.
    fn out_of_memory(&self, hit: LimitHit);
    /// The code cannot be ended at all: answers its callers and condemns the process. The thread is parked for ever when
    /// this returns.
    fn beyond_rescue(&self, reason: &str);
}

/// The account of one isolate. Buffers outlive their isolate on V8's sweeper threads, so everything is shared.
pub(crate) struct Account {
    used: AtomicU64,
    limit: AtomicU64,
    /// Bytes held beyond which garbage is collected before the host gives more.
    crowded: AtomicU64,
    heap_limit: AtomicU64,
    /// Bytes of large objects on the heap, and the last total of them that was refused.
    large: AtomicU64,
    large_refused: AtomicU64,
    owner: OnceLock<Arc<dyn MemoryOwner>>,
    /// Refusals since the last grant, and the bytes of the last.
    refusals: AtomicU32,
    refused_bytes: AtomicU64,
    reported: Mutex<Option<Instant>>,
}

thread_local! {
    static CURRENT: RefCell<Option<Arc<Account>>> = const { RefCell::new(None) };
}

/// The account of the isolate of this thread. `None` on threads without one and while a thread ends.
pub(crate) fn current() -> Option<Arc<Account>> {
    CURRENT.try_with(|current| current.borrow().clone()).ok().flatten()
}

impl Account {
    /// An account without limit, for the isolate that the calling thread is about to make.
    pub(crate) fn open() -> Arc<Self> {
        let account = Arc::new(Self {
            used: AtomicU64::new(0),
            limit: AtomicU64::new(u64::MAX),
            crowded: AtomicU64::new(u64::MAX),
            heap_limit: AtomicU64::new(u64::MAX),
            large: AtomicU64::new(0),
            large_refused: AtomicU64::new(0),
            owner: OnceLock::new(),
            refusals: AtomicU32::new(0),
            refused_bytes: AtomicU64::new(0),
            reported: Mutex::default(),
        });
        _ = CURRENT.try_with(|current| current.replace(Some(Arc::clone(&account))));
        account
    }

    /// Gives the isolate to a function, whose limits hold from now on.
    pub(crate) fn assign(&self, limits: &Limits, owner: Arc<dyn MemoryOwner>) {
        self.limit.store(limits.buffer_bytes, Ordering::Relaxed);
        self.expect_crowding(0);
        self.heap_limit.store(limits.heap_bytes, Ordering::Relaxed);
        _ = self.owner.set(owner);
    }

    /// Bytes of JavaScript heap that the function may have.
    pub(crate) fn heap_limit(&self) -> u64 {
        self.heap_limit.load(Ordering::Relaxed)
    }

    /// Whose isolate it is, once it belongs to a function.
    pub(crate) fn owner(&self) -> Option<&Arc<dyn MemoryOwner>> {
        self.owner.get()
    }

    /// Bytes held now.
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Counts bytes that the function asks for. `false`: it may not have them.
    pub(crate) fn try_charge(&self, bytes: u64) -> bool {
        let limit = self.limit.load(Ordering::Relaxed);
        let charged = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(bytes).filter(|used| *used <= limit)
        });
        if charged.is_ok() {
            self.refusals.store(0, Ordering::Relaxed);
        }
        charged.is_ok()
    }

    /// Counts bytes that the function has got in any case.
    pub(crate) fn charge(&self, bytes: u64) {
        let used = self.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.check(used);
    }

    /// Collects the garbage of the isolate, if there is too much to give it so many bytes more. Called by the host, outside
    /// of V8.
    fn make_room(&self, isolate: &mut v8::Isolate, bytes: u64) {
        if self.used().saturating_add(bytes) > self.crowded.load(Ordering::Relaxed) {
            isolate.low_memory_notification();
            self.expect_crowding(self.used());
        }
    }

    /// Garbage is worth collecting at the limit; or, where so much is held that collecting it does not help, half-way to
    /// the end.
    fn expect_crowding(&self, used: u64) {
        let limit = self.limit.load(Ordering::Relaxed);
        let crowded = limit.max(used.saturating_add(OVERRUN_BYTES / 2));
        self.crowded.store(crowded, Ordering::Relaxed);
    }

    /// Ends the isolate when it holds too much: `held` is a count of V8's or of ours.
    pub(crate) fn check(&self, held: u64) {
        let limit = self.limit.load(Ordering::Relaxed);
        if held > limit.saturating_add(OVERRUN_BYTES)
            && let Some(owner) = self.owner.get()
        {
            owner.out_of_memory(hit(limit, held));
        }
    }

    /// Takes back what was charged.
    pub(crate) fn credit(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// One of so many attempts to get `bytes` was refused; V8 collects garbage and tries again.
    pub(crate) fn refused(&self, bytes: u64, attempts: u32) {
        self.refused_bytes.store(bytes, Ordering::Relaxed);
        if self.refusals.fetch_add(1, Ordering::Relaxed) + 1 >= attempts {
            self.refused_for_good(bytes);
        }
    }

    /// JavaScript has ended for now: what was refused last, if anything was, is not tried again. V8 tries several times for
    /// a new buffer, but only once to make an empty one grow.
    pub(crate) fn end_of_run(&self) {
        if self.is_retrying() {
            self.refused_for_good(self.refused_bytes.load(Ordering::Relaxed));
        }
    }

    /// Counts a large object of the heap. `false`: it does not fit; V8 collects garbage and tries again.
    pub(crate) fn try_charge_large(&self, bytes: u64) -> bool {
        let limit = self.heap_limit();
        let charged = self.large.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |large| {
            large.checked_add(bytes).filter(|large| *large <= limit)
        });
        let refused = charged.map_or_else(|large| large.saturating_add(bytes), |_| 0);
        self.large_refused.store(refused, Ordering::Relaxed);
        refused == 0
    }

    /// Takes back what was charged.
    pub(crate) fn credit_large(&self, bytes: u64) {
        self.large.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Bytes of large objects there would be if the last one had not been refused; 0 when it was not.
    pub(crate) fn large_refused(&self) -> u64 {
        self.large_refused.load(Ordering::Relaxed)
    }

    /// Lets the heap hold so much more from now on: its code is being ended.
    pub(crate) fn add_headroom(&self, bytes: u64) {
        let limit = self.heap_limit().saturating_add(bytes);
        self.heap_limit.store(limit, Ordering::Relaxed);
    }

    /// Whether V8 is still trying to get what was refused.
    pub(crate) fn is_retrying(&self) -> bool {
        self.refusals.load(Ordering::Relaxed) > 0
    }

    /// A request for `bytes` was refused: reports it, unless another was reported just now.
    pub(crate) fn refused_for_good(&self, bytes: u64) {
        self.refusals.store(0, Ordering::Relaxed);
        let Some(owner) = self.owner.get() else { return };
        let now = Instant::now();
        {
            let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
            if reported.is_some_and(|last| now.duration_since(last) < REPORT_INTERVAL) {
                return;
            }
            *reported = Some(now);
        }
        let limit = self.limit.load(Ordering::Relaxed);
        owner.limit_hit(hit(limit, self.used().saturating_add(bytes)));
    }

    /// The allocator for the isolate of this account.
    #[allow(unsafe_code, reason = "V8 takes a C++ object with callbacks")]
    pub(crate) fn allocator(self: &Arc<Self>) -> v8::UniqueRef<v8::Allocator> {
        static CALLBACKS: v8::RustAllocatorVtable<Account> = v8::RustAllocatorVtable {
            allocate,
            allocate_uninitialized,
            free,
            drop: drop_account,
        };
        // SAFETY: the handle is a counted reference, which `drop_account` gives back; the callbacks take what it points
        // at.
        unsafe { v8::new_rust_allocator(Arc::into_raw(Arc::clone(self)), &CALLBACKS) }
    }
}

fn hit(allowed: u64, measured: u64) -> LimitHit {
    LimitHit {
        limit: Limit::BufferBytes,
        allowed,
        measured,
    }
}

fn layout(length: usize) -> Option<Layout> {
    // The allocator wants no empty layouts; V8 does not ask for empty buffers, but may.
    Layout::from_size_align(length.max(1), ALIGNMENT).ok()
}

fn allocate_with(account: &Account, length: usize, allocate: unsafe fn(Layout) -> *mut u8) -> *mut c_void {
    let Some(layout) = layout(length) else {
        return std::ptr::null_mut();
    };
    if !account.try_charge(length as u64) {
        account.refused(length as u64, ATTEMPTS);
        return std::ptr::null_mut();
    }
    // SAFETY: `alloc` and `alloc_zeroed` want a layout that is not empty.
    #[allow(unsafe_code, reason = "raw memory for V8")]
    let memory = unsafe { allocate(layout) };
    if memory.is_null() {
        account.credit(length as u64);
    }
    memory.cast()
}

#[allow(unsafe_code, reason = "callbacks of V8's allocator")]
unsafe extern "C" fn allocate(account: &Account, length: usize) -> *mut c_void {
    allocate_with(account, length, alloc_zeroed)
}

#[allow(unsafe_code, reason = "callbacks of V8's allocator")]
unsafe extern "C" fn allocate_uninitialized(account: &Account, length: usize) -> *mut c_void {
    allocate_with(account, length, alloc)
}

#[allow(unsafe_code, reason = "callbacks of V8's allocator")]
unsafe extern "C" fn free(account: &Account, data: *mut c_void, length: usize) {
    if let Some(layout) = layout(length).filter(|_| !data.is_null()) {
        // SAFETY: V8 gives back what `allocate_with` made, with the same length.
        unsafe { dealloc(data.cast(), layout) };
        account.credit(length as u64);
    }
}

#[allow(unsafe_code, reason = "callbacks of V8's allocator")]
unsafe extern "C" fn drop_account(account: *const Account) {
    // SAFETY: V8 drops the allocator once, and with it the reference that `allocator` gave it.
    drop(unsafe { Arc::from_raw(account) });
}

/// A backing store over a copy of bytes that the host gives to the function of this thread's isolate: counted, never
/// refused.
#[allow(unsafe_code, reason = "V8 frees the bytes through a callback")]
pub(crate) fn backing_store(isolate: &mut v8::Isolate, bytes: &[u8]) -> v8::UniqueRef<v8::BackingStore> {
    let Some(account) = current().filter(|_| !bytes.is_empty()) else {
        return v8::ArrayBuffer::new_backing_store_from_vec(bytes.to_vec());
    };
    let length = bytes.len();
    account.make_room(isolate, length as u64);
    account.charge(length as u64);
    let data = Box::into_raw(Box::<[u8]>::from(bytes)).cast::<c_void>();
    let account = Arc::into_raw(account).cast_mut().cast();
    // SAFETY: `data` is a whole boxed slice of `length` bytes and `account` a counted reference; `free_boxed` takes both
    // back, once, when V8 drops the store.
    unsafe { v8::ArrayBuffer::new_backing_store_from_ptr(data, length, free_boxed, account) }
}

#[allow(unsafe_code, reason = "V8 frees the bytes through a callback")]
unsafe extern "C" fn free_boxed(data: *mut c_void, length: usize, account: *mut c_void) {
    // SAFETY: see `backing_store`.
    unsafe {
        drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(
            data.cast::<u8>(),
            length,
        )));
        let account = Arc::from_raw(account.cast_const().cast::<Account>());
        account.credit(length as u64);
    }
}

/// Compares V8's own count of memory outside of the heap with the limit after each full garbage collection, of which
/// growth of that count is a cause: it has buffers that ops of deno_core made, compiled WebAssembly, and the like.
#[allow(unsafe_code, reason = "a callback with raw pointers")]
pub(crate) fn check_after_collections(isolate: &mut v8::Isolate) {
    unsafe extern "C" fn check(
        isolate: v8::UnsafeRawIsolatePtr,
        _kind: v8::GCType,
        _flags: v8::GCCallbackFlags,
        _data: *mut c_void,
    ) {
        if let Some(account) = current() {
            // SAFETY: V8 passes the isolate that it is in.
            let mut isolate = unsafe { v8::Isolate::from_raw_isolate_ptr(isolate) };
            // A change by nothing only reads the count.
            let held = isolate.adjust_amount_of_external_allocated_memory(0);
            account.check(u64::try_from(held).unwrap_or(0));
        }
    }
    isolate.add_gc_epilogue_callback(check, std::ptr::null_mut(), v8::GCType::kGCTypeMarkSweepCompact);
}
