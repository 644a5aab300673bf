//! Forgets the task runners of isolates that have ended.
//!
//! The platform in V8's Rust bindings (`class CustomPlatform` in `binding.cc`) makes some for each isolate and remembers
//! them by its address for ever. That is no more than 300 bytes in four places, but they lie amid what else the isolate had
//! of the C heap, and each keeps the pages around it from being given back: 12 KiB for each isolate at an address where none
//! was before.
//!
//! So from time to time the map in which they are is emptied. It only helps to find what is in use: whoever uses a task
//! runner holds it, and one that is not found is made anew.

use std::ffi::c_void;
use std::sync::OnceLock;

use deno_core::v8;

use super::peek;

/// Words of the platform that are searched; it has 28.
const SEARCHED: usize = 48;

/// A `std::map` of libc++.
#[repr(C)]
struct Map {
    first: *mut c_void,
    root: *mut c_void,
    len: usize,
}

/// Words of a map and of the mutex in front of it.
const MAP: usize = size_of::<Map>() / size_of::<usize>();
const MUTEX: usize = size_of::<libc::pthread_mutex_t>() / size_of::<usize>();

/// Address of the platform's map of task runners, if it was found.
static RUNNERS: OnceLock<usize> = OnceLock::new();

#[allow(unsafe_code, reason = "functions of V8's platform and of its C++ library")]
unsafe extern "C" {
    /// `std::mutex::lock`
    #[link_name = "_ZNSt4__Cr5mutex4lockEv"]
    fn lock(mutex: *mut c_void);
    /// `std::mutex::unlock`
    #[link_name = "_ZNSt4__Cr5mutex6unlockEv"]
    fn unlock(mutex: *mut c_void);
    /// Deletes a node of the map and all below it, as the map's destructor does; `deleter` refers to the map.
    #[link_name = "_ZNSt4__Cr6__treeINS_12__value_typeINS_4pairIPN2v87IsolateENS3_12TaskPriorityEEENS_8weak_ptrI16CustomTaskRunnerEEEENS_19__map_value_compareIS7_NS2_IKS7_SA_EENS_4lessIS7_EEEENS_9allocatorISE_EEE14__tree_deleterclEPNS_11__tree_nodeISB_PvEE"]
    fn delete_nodes(deleter: *const *mut Map, root: *mut c_void);
}

/// Looks for the map. Once, after V8 was initialised and before the first isolate, while it is empty and so easy to know:
/// first comes the address of what follows. It is the second of the platform's maps, behind its mutex.
pub(super) fn install() {
    let platform = v8::V8::get_current_platform();
    let platform: *const v8::Platform = &raw const *platform;
    let mut words = [0; SEARCHED];
    let words = peek::words(platform.addr(), &mut words);
    let address = |index: usize| platform.addr() + index * size_of::<usize>();
    let empty = |index: &usize| {
        words
            .get(*index..index + MAP)
            .is_some_and(|map| map == [address(index + 1), 0, 0])
    };
    let map = (0..words.len()).filter(empty).nth(1);
    let unlocked = |map: &usize| {
        let mutex = map.checked_sub(MUTEX).and_then(|start| words.get(start..*map));
        mutex.is_some_and(|mutex| mutex == [0; MUTEX])
    };
    match map.filter(unlocked) {
        Some(map) => _ = RUNNERS.set(address(map)),
        None => tracing::debug!("V8's platform is not as expected: task runners of isolates that end will stay"),
    }
}

/// Empties the map.
#[allow(unsafe_code, reason = "changes a C++ object")]
pub(super) fn forget() {
    let Some(&address) = RUNNERS.get() else { return };
    let map: *mut Map = std::ptr::with_exposed_provenance_mut(address);
    // SAFETY: `install` has found the map and its mutex there, in the platform, which lives as long as the process. All who
    // use the map hold the mutex. It is left as a new map is; its nodes belong to nobody else then, and C++ itself deletes
    // them.
    unsafe {
        let mutex: *mut c_void = map.byte_sub(size_of::<libc::pthread_mutex_t>()).cast();
        lock(mutex);
        let root = (*map).root;
        *map = Map {
            first: (&raw mut (*map).root).cast(),
            root: std::ptr::null_mut(),
            len: 0,
        };
        unlock(mutex);
        delete_nodes(&raw const map, root);
    }
}
