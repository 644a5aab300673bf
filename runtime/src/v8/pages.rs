//! Counts what V8 takes from its page allocator for an isolate and does not bound well itself.
//!
//! Those are WebAssembly memories, resizable buffers and stacks of suspended WebAssembly: V8 reserves address space
//! without access, and makes pages of it accessible as the memory grows; nothing else in V8 15 reserves that way on a
//! thread that runs an isolate. So this is the one place that sees all of them, whether they are made by `new
//! WebAssembly.Memory`, declared in a module, grown by an instruction or copied. And those are large objects of the heap:
//! V8 has them begin in the young generation, where the first may be of any size, whatever the limit of the heap.
//!
//! V8 lets embedders supply the allocator (`v8::Platform::GetPageAllocator`), but its Rust bindings do not carry that.
//! So three methods of the platform's own allocator are replaced, in a copy of its table of virtual functions; the
//! layout is that of `class PageAllocator` in `v8-platform.h` under the Itanium C++ ABI. [`install`] checks what it finds
//! before it changes anything, and `tests/memory.rs` fails when V8 no longer comes this way.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use deno_core::v8;

use super::buffers::{self, ATTEMPTS, Account};

/// Most address space of one reservation: a WebAssembly memory of 64 bits may want 16 GiB. V8 makes do with less when a
/// WebAssembly memory without a maximum cannot have all.
const MAX_RESERVATION: usize = 16 << 30;
/// Most address space of all reservations; a process has 128 TiB, and nobody must be able to use it up.
const MAX_RESERVED: usize = 32 << 40;
/// Most reservations; each takes up to three of the 65,530 mappings that Linux allows a process.
const MAX_RESERVATIONS: usize = 12_288;
/// Least bytes of a large object that is counted; smaller ones are bounded by V8's own check before the next.
const LARGE_OBJECT: usize = 1 << 20;
/// What a reservation counts at least, so that an isolate can have only so many: a page of WebAssembly.
const LEAST_CHARGE: usize = 64 << 10;
/// How often V8 tries to reserve before it collects garbage, see `ATTEMPTS` in `buffers`.
const TRIES: u32 = 2;

/// Positions in the table of virtual functions, after the two destructors.
const ALLOCATE_PAGE_SIZE: usize = 2;
const ALLOCATE_PAGES: usize = 6;
const FREE_PAGES: usize = 9;
const SET_PERMISSIONS: usize = 11;
const DECOMMIT_PAGES: usize = 14;
/// Entries of the table, and those in front of it: the offset to the top of the object and its type information.
const ENTRIES: usize = 19;
const HEADER: usize = 2;
/// Position of `GetPageAllocator` in the table of `class Platform`.
const GET_PAGE_ALLOCATOR: usize = 2;

/// `PageAllocator::Permission`.
const NO_ACCESS: c_int = 0;
const READ_WRITE: c_int = 2;

type Entry = *const c_void;
type GetPageSize = unsafe extern "C" fn(*mut c_void) -> usize;
type GetPageAllocator = unsafe extern "C" fn(*const c_void) -> *mut AtomicPtr<Entry>;
type AllocatePages = unsafe extern "C" fn(*mut c_void, *mut c_void, usize, usize, c_int) -> *mut c_void;
type FreePages = unsafe extern "C" fn(*mut c_void, *mut c_void, usize) -> bool;
type SetPermissions = unsafe extern "C" fn(*mut c_void, *mut c_void, usize, c_int) -> bool;

/// V8's own methods.
struct Original {
    allocate_pages: AllocatePages,
    free_pages: FreePages,
    decommit_pages: FreePages,
    set_permissions: SetPermissions,
}

static ORIGINAL: OnceLock<Original> = OnceLock::new();
static RESERVATIONS: Mutex<Reservations> = Mutex::new(Reservations {
    by_base: BTreeMap::new(),
    reserved: 0,
});
/// How many there are: most calls concern V8's heap, and need not look when there are none.
static COUNT: AtomicUsize = AtomicUsize::new(0);

struct Reservations {
    by_base: BTreeMap<usize, Reservation>,
    /// Address space of all, in bytes.
    reserved: usize,
}

struct Reservation {
    account: Arc<Account>,
    length: usize,
    kind: Kind,
}

enum Kind {
    /// A memory or a stack, and its bytes with access.
    Outside { committed: usize },
    /// A large object of the heap.
    Heap,
}

/// What bytes with access count.
fn charge_of(committed: usize) -> u64 {
    committed.max(LEAST_CHARGE) as u64
}

/// Begins to count. Once, after V8 was initialised and before the first isolate.
///
/// # Errors
/// When V8's page allocator is not what we know.
#[allow(unsafe_code, reason = "replaces virtual functions of a C++ object")]
pub(super) fn install() -> Result<(), String> {
    let platform = v8::V8::get_current_platform();
    let platform: *const c_void = std::ptr::from_ref::<v8::Platform>(&platform).cast();
    // SAFETY: a `v8::Platform` begins with the address of its table of virtual functions, which has `GetPageAllocator`
    // third, after the destructors; its result begins with such an address, too. The types are those of the header.
    unsafe {
        let platform_table = *platform.cast::<*const Entry>();
        let get: GetPageAllocator = std::mem::transmute(*platform_table.add(GET_PAGE_ALLOCATOR));
        let allocator = get(platform);
        if allocator.is_null() {
            return Err("V8's platform has no page allocator".into());
        }
        let table: *const Entry = (*allocator).load(Ordering::Acquire);
        let page_size: GetPageSize = std::mem::transmute(*table.add(ALLOCATE_PAGE_SIZE));
        let expected = usize::try_from(libc::sysconf(libc::_SC_PAGESIZE)).unwrap_or(0);
        if page_size(allocator.cast()) != expected {
            return Err("V8's page allocator is not the one this program was made for".into());
        }
        let original = Original {
            allocate_pages: std::mem::transmute::<Entry, AllocatePages>(*table.add(ALLOCATE_PAGES)),
            free_pages: std::mem::transmute::<Entry, FreePages>(*table.add(FREE_PAGES)),
            decommit_pages: std::mem::transmute::<Entry, FreePages>(*table.add(DECOMMIT_PAGES)),
            set_permissions: std::mem::transmute::<Entry, SetPermissions>(*table.add(SET_PERMISSIONS)),
        };
        if ORIGINAL.set(original).is_err() {
            return Ok(());
        }
        let mut copy = std::slice::from_raw_parts(table.sub(HEADER), HEADER + ENTRIES).to_vec();
        let allocate_pages: AllocatePages = allocate_pages;
        let free_pages: FreePages = free_pages;
        let decommit_pages: FreePages = decommit_pages;
        let set_permissions: SetPermissions = set_permissions;
        for (position, function) in [
            (ALLOCATE_PAGES, allocate_pages as Entry),
            (FREE_PAGES, free_pages as Entry),
            (DECOMMIT_PAGES, decommit_pages as Entry),
            (SET_PERMISSIONS, set_permissions as Entry),
        ] {
            if let Some(entry) = copy.get_mut(HEADER + position) {
                *entry = function;
            }
        }
        // The allocator lives as long as the process, and so does its table.
        let copy = Box::leak(copy.into_boxed_slice());
        (*allocator).store(copy.as_mut_ptr().add(HEADER), Ordering::Release);
    }
    Ok(())
}

fn reservations() -> MutexGuard<'static, Reservations> {
    RESERVATIONS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Reservations {
    /// Whether the process can do with so much more.
    fn has_room(&self, length: usize) -> bool {
        self.reserved.saturating_add(length) <= MAX_RESERVED && self.by_base.len() < MAX_RESERVATIONS
    }

    fn insert(&mut self, base: usize, reservation: Reservation) {
        self.reserved += reservation.length;
        self.by_base.insert(base, reservation);
        COUNT.store(self.by_base.len(), Ordering::Release);
    }

    fn remove(&mut self, base: usize) {
        if let Some(reservation) = self.by_base.remove(&base) {
            self.reserved -= reservation.length;
            match reservation.kind {
                Kind::Outside { committed } => reservation.account.credit(charge_of(committed)),
                Kind::Heap => reservation.account.credit_large(reservation.length as u64),
            }
        }
        COUNT.store(self.by_base.len(), Ordering::Release);
    }

    fn find(&mut self, address: usize) -> Option<(usize, &mut Reservation)> {
        let (base, reservation) = self.by_base.range_mut(..=address).next_back()?;
        (address - base < reservation.length).then_some((*base, reservation))
    }
}

/// V8 reserves address space, or takes pages for its heap.
#[allow(unsafe_code, reason = "a virtual function of a C++ object")]
unsafe extern "C" fn allocate_pages(
    this: *mut c_void,
    hint: *mut c_void,
    length: usize,
    alignment: usize,
    permission: c_int,
) -> *mut c_void {
    let Some(original) = ORIGINAL.get() else {
        return std::ptr::null_mut();
    };
    // SAFETY: V8's own method with V8's own arguments.
    let allocate = || unsafe { (original.allocate_pages)(this, hint, length, alignment, permission) };
    let large = permission == READ_WRITE && length >= LARGE_OBJECT;
    if permission != NO_ACCESS && !large {
        return allocate();
    }
    let Some(account) = buffers::current() else {
        return allocate();
    };
    if large {
        return allocate_large(account, length, allocate);
    }
    let asked = if length > MAX_RESERVATION {
        length as u64
    } else {
        charge_of(0)
    };
    if length > MAX_RESERVATION || !account.try_charge(asked) {
        account.refused(asked, TRIES * ATTEMPTS);
        return std::ptr::null_mut();
    }
    let base = if reservations().has_room(length) {
        allocate()
    } else {
        std::ptr::null_mut()
    };
    if base.is_null() {
        account.credit(asked);
        return base;
    }
    let kind = Kind::Outside { committed: 0 };
    let reservation = Reservation { account, length, kind };
    reservations().insert(base.addr(), reservation);
    base
}

fn allocate_large(account: Arc<Account>, length: usize, allocate: impl FnOnce() -> *mut c_void) -> *mut c_void {
    // A new isolate takes its tables the same way.
    if account.owner().is_none() {
        return allocate();
    }
    if !account.try_charge_large(length as u64) {
        return std::ptr::null_mut();
    }
    let base = allocate();
    if base.is_null() {
        account.credit_large(length as u64);
        return base;
    }
    let kind = Kind::Heap;
    let reservation = Reservation { account, length, kind };
    reservations().insert(base.addr(), reservation);
    base
}

/// V8 gives back a reservation, or pages of its heap.
#[allow(unsafe_code, reason = "a virtual function of a C++ object")]
unsafe extern "C" fn free_pages(this: *mut c_void, address: *mut c_void, length: usize) -> bool {
    // Before the pages are gone: another thread may get their address right after.
    forget(address.addr());
    // SAFETY: V8's own method with V8's own arguments.
    ORIGINAL
        .get()
        .is_some_and(|original| unsafe { (original.free_pages)(this, address, length) })
}

/// V8 is done with a stack of suspended WebAssembly, or with pages of its heap.
#[allow(unsafe_code, reason = "a virtual function of a C++ object")]
unsafe extern "C" fn decommit_pages(this: *mut c_void, address: *mut c_void, length: usize) -> bool {
    forget(address.addr());
    // SAFETY: V8's own method with V8's own arguments.
    ORIGINAL
        .get()
        .is_some_and(|original| unsafe { (original.decommit_pages)(this, address, length) })
}

fn forget(base: usize) {
    if COUNT.load(Ordering::Acquire) > 0 {
        reservations().remove(base);
    }
}

/// V8 makes pages accessible, or takes access away.
#[allow(unsafe_code, reason = "a virtual function of a C++ object")]
unsafe extern "C" fn set_permissions(
    this: *mut c_void,
    address: *mut c_void,
    length: usize,
    permission: c_int,
) -> bool {
    let Some(original) = ORIGINAL.get() else { return false };
    // SAFETY: V8's own method with V8's own arguments.
    let set = || unsafe { (original.set_permissions)(this, address, length, permission) };
    if COUNT.load(Ordering::Acquire) == 0 {
        return set();
    }
    match permission {
        READ_WRITE => commit(address.addr(), length, set),
        NO_ACCESS => uncommit(address.addr(), set),
        _ => set(),
    }
}

/// Charges pages of a reservation that are about to be made accessible.
fn commit(address: usize, length: usize, set: impl FnOnce() -> bool) -> bool {
    let (base, account, before, after) = {
        let mut reservations = reservations();
        let Some((base, reservation)) = reservations.find(address) else {
            drop(reservations);
            return set();
        };
        let Kind::Outside { committed: before } = reservation.kind else {
            drop(reservations);
            return set();
        };
        let after = if address == base {
            before.max(length)
        } else {
            before + length
        };
        (base, Arc::clone(&reservation.account), before, after)
    };
    let more = charge_of(after) - charge_of(before);
    if address != base {
        // A stack, between guard pages. V8 aborts when it cannot have one.
        account.charge(more);
    } else if !account.try_charge(more) {
        // V8 collects garbage and tries again for a new memory, but not to make one grow.
        if before == 0 {
            account.refused(more, ATTEMPTS);
        } else {
            account.refused_for_good(more);
        }
        return false;
    }
    if set() {
        set_committed(base, after);
        true
    } else {
        account.credit(more);
        false
    }
}

/// Credits pages of a reservation that are no longer accessible: those from `address` on.
fn uncommit(address: usize, set: impl FnOnce() -> bool) -> bool {
    if !set() {
        return false;
    }
    let mut reservations = reservations();
    if let Some((base, reservation)) = reservations.find(address)
        && let Kind::Outside { committed } = &mut reservation.kind
    {
        let after = (*committed).min(address - base);
        reservation.account.credit(charge_of(*committed) - charge_of(after));
        *committed = after;
    }
    true
}

/// A reservation belongs to one isolate, whose thread alone changes it: nobody else has been here meanwhile.
fn set_committed(base: usize, committed: usize) {
    if let Some(reservation) = reservations().by_base.get_mut(&base) {
        reservation.kind = Kind::Outside { committed };
    }
}
