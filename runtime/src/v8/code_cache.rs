//! Compiled code of functions, for the instances that start later.
//!
//! An instance that starts from here need not parse and compile what its forerunners ran. The code is taken from an
//! isolate after its function has served calls ([`Isolate::keep_code`](super::isolate::Isolate::keep_code)), because V8
//! compiles lazily: what is compiled then is what a start needs. It is found by the hash of the source, so functions with
//! equal sources share it, whatever their names and environments.
//!
//! The code stays in this process. V8 trusts it blindly: it checks version, flags, snapshot and length of the source, but
//! not the content, so whoever can write it owns the process that reads it. An agent runs code of strangers; were its code
//! handed to others, by disk or by wire, one agent taken over could take over all. Compiling once per agent is the price.
//! For the same reason, and because a flipped bit would be memory corruption, each entry is [sealed](seal) under a key
//! that this process draws and never tells, and opened before V8 sees any of it.
//!
//! V8's version and flags and our snapshot cannot change while the process lives; the seal covers them all the same.

mod lru;
mod seal;

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use deno_core::v8::script_compiler::cached_data_version_tag;
use parking_lot::Mutex;

use self::lru::Lru;
use self::seal::{HEADER_BYTES, Sealer};

/// The largest part of the cache that one source may take: else a few big ones would drive out all small ones.
const LARGEST_SHARE: usize = 8;

/// What compiled code belongs to: the hash of its source.
pub(super) type SourceHash = [u8; 32];

pub(super) fn hash(source: &[u8]) -> SourceHash {
    *blake3::hash(source).as_bytes()
}

/// How a source is to be compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// A classic script, whose last value is the function.
    Script,
    /// A module, whose default export is the function.
    Module,
}

/// What a [`V8Engine`](super::V8Engine) keeps of compiled code, and how often it served.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CodeCacheStats {
    /// Sources whose code is kept.
    pub entries: usize,
    /// Bytes they take, book-keeping included; at most [`V8Config::code_cache_bytes`](super::V8Config::code_cache_bytes).
    pub bytes: usize,
    /// Instances that started from kept code.
    pub hits: u64,
    /// Instances that started without, because there was none.
    pub misses: u64,
    /// Instances that started without, because what there was had been tampered with or V8 refused it.
    pub rejected: u64,
}

pub(super) struct CodeCache {
    capacity: usize,
    snapshot: &'static [u8],
    sealer: OnceLock<Sealer>,
    entries: Mutex<Lru<Entry>>,
    hits: AtomicU64,
    misses: AtomicU64,
    rejected: AtomicU64,
}

#[derive(Clone)]
struct Entry {
    sealed: Arc<[u8]>,
    calls: u64,
}

/// Code that is as V8 gave it.
pub(super) struct Cached {
    pub(super) form: Form,
    /// Calls that had been served, by all instances it came down through, when it was taken.
    pub(super) calls: u64,
    sealed: Arc<[u8]>,
}

impl Cached {
    /// For V8. Aligned as it wants it, so that it makes no copy.
    pub(super) fn code(&self) -> &[u8] {
        self.sealed.get(HEADER_BYTES..).unwrap_or_default()
    }
}

impl CodeCache {
    /// A cache of at most `capacity` bytes for isolates that are made from `snapshot`; 0 keeps nothing.
    pub(super) fn new(capacity: u64, snapshot: &'static [u8]) -> Self {
        Self {
            capacity: usize::try_from(capacity).unwrap_or(usize::MAX),
            snapshot,
            sealer: OnceLock::new(),
            entries: Mutex::default(),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
        }
    }

    /// The code of a source. Whoever gets it reports what became of it, with [`used`](Self::used) or
    /// [`refuse`](Self::refuse).
    pub(super) fn find(&self, source: &SourceHash) -> Option<Cached> {
        if self.capacity == 0 {
            return None;
        }
        let Some(Entry { sealed, calls }) = self.entries.lock().get(source).cloned() else {
            self.misses.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        // Outside of the lock: it reads all of the code.
        match self.sealer().open(source, &sealed) {
            Some(form) => Some(Cached { form, calls, sealed }),
            None => {
                tracing::warn!("compiled code was changed in memory; the function is compiled again");
                self.drop_entry(source);
                None
            }
        }
    }

    /// V8 has taken the code.
    pub(super) fn used(&self) {
        self.hits.fetch_add(1, Ordering::Relaxed);
    }

    /// V8 has refused the code.
    pub(super) fn refuse(&self, source: &SourceHash) {
        tracing::debug!("V8 refused compiled code; the function is compiled again");
        self.drop_entry(source);
    }

    fn drop_entry(&self, source: &SourceHash) {
        self.rejected.fetch_add(1, Ordering::Relaxed);
        self.entries.lock().remove(source);
    }

    /// Whether code taken after `calls` calls would be kept: there is none yet, or it was taken after far fewer calls.
    pub(super) fn wants(&self, source: &SourceHash, calls: u64) -> bool {
        self.capacity > 0
            && self
                .entries
                .lock()
                .peek(source)
                .is_none_or(|entry| calls >= renewal_after(entry.calls))
    }

    /// Keeps code, and drops what was not used for longest when there is no room for it.
    pub(super) fn store(&self, source: &SourceHash, form: Form, calls: u64, code: &[u8]) {
        let size = HEADER_BYTES + code.len() + lru::ENTRY_OVERHEAD_BYTES;
        if size > self.capacity / LARGEST_SHARE {
            return;
        }
        let sealed = self.sealer().seal(source, form, code);
        let mut entries = self.entries.lock();
        entries.insert(*source, Entry { sealed, calls }, size);
        entries.shrink_to(self.capacity);
    }

    pub(super) fn stats(&self) -> CodeCacheStats {
        let (entries, bytes) = {
            let entries = self.entries.lock();
            (entries.len(), entries.bytes())
        };
        CodeCacheStats {
            entries,
            bytes,
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            rejected: self.rejected.load(Ordering::Relaxed),
        }
    }

    /// Made late, because V8 knows its flags only once it is initialised; isolates, which alone come here, are later still.
    fn sealer(&self) -> &Sealer {
        self.sealer.get_or_init(|| {
            let mut context = blake3::Hasher::new();
            context.update(&cached_data_version_tag().to_le_bytes());
            context.update(self.snapshot);
            Sealer::new(rand::random(), *context.finalize().as_bytes())
        })
    }
}

/// Code is taken again after four times as many calls: it has become better, and the work stays logarithmic.
pub(super) fn renewal_after(calls: u64) -> u64 {
    calls.saturating_mul(4).max(1)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    fn cache(capacity: u64) -> CodeCache {
        CodeCache::new(capacity, b"snapshot")
    }

    fn store(cache: &CodeCache, source: &str, calls: u64, code: &[u8]) -> SourceHash {
        let source = hash(source.as_bytes());
        cache.store(&source, Form::Module, calls, code);
        source
    }

    #[test]
    fn code_comes_back_as_it_was_and_aligned_for_v8() {
        let cache = cache(1 << 20);
        for length in [0, 1, 7, 8, 1000, 4097] {
            let code: Vec<u8> = (0..length).map(|byte| byte as u8).collect();
            let source = store(&cache, &length.to_string(), 3, &code);
            let found = cache.find(&source).unwrap();
            assert_eq!((found.form, found.calls, found.code()), (Form::Module, 3, &code[..]));
            assert_eq!(found.code().as_ptr().align_offset(8), 0);
        }
        assert!(cache.find(&hash(b"another")).is_none());
        let stats = cache.stats();
        assert_eq!((stats.entries, stats.misses, stats.rejected), (6, 1, 0));
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let cache = cache(40_000);
        let sources: Vec<_> = (0..10).map(|n| store(&cache, &n.to_string(), 0, &[n; 3000])).collect();
        assert_eq!(cache.stats().entries, 10);
        cache.find(&sources[0]).unwrap();
        let later: Vec<_> = (10..14).map(|n| store(&cache, &n.to_string(), 0, &[n; 3000])).collect();
        let stats = cache.stats();
        assert!(stats.bytes <= 40_000 && stats.entries == 12, "{stats:?}");
        assert!(cache.find(&sources[0]).is_some());
        assert!(cache.find(&sources[1]).is_none() && cache.find(&sources[2]).is_none());
        assert!(later.iter().all(|source| cache.find(source).is_some()));
    }

    #[test]
    fn a_source_takes_only_its_share() {
        let cache = cache(80_000);
        let small = store(&cache, "small", 0, &[1; 100]);
        let large = store(&cache, "large", 0, &[1; 10_000]);
        assert!(cache.find(&small).is_some() && cache.find(&large).is_none());
    }

    #[test]
    fn without_capacity_it_is_off() {
        let cache = cache(0);
        let source = store(&cache, "source", 0, &[1; 100]);
        assert!(!cache.wants(&hash(b"another"), 0));
        assert!(cache.find(&source).is_none());
        assert_eq!(cache.stats(), CodeCacheStats::default());
    }

    #[test]
    fn better_code_replaces_worse() {
        let cache = cache(1 << 20);
        let source = hash(b"source");
        assert!(cache.wants(&source, 0));
        store(&cache, "source", 0, b"bare");
        assert!(!cache.wants(&source, 0) && cache.wants(&source, 1));
        store(&cache, "source", 5, b"better");
        assert!(!cache.wants(&source, 19) && cache.wants(&source, 20));
        assert_eq!(cache.find(&source).unwrap().code(), b"better");
        let bytes = cache.stats().bytes;
        store(&cache, "source", 20, b"better");
        assert_eq!((cache.stats().entries, cache.stats().bytes), (1, bytes));
    }

    #[test]
    fn changed_code_is_refused_and_forgotten() {
        let cache = cache(1 << 20);
        let source = store(&cache, "source", 0, &[7; 100]);
        let entry = cache.entries.lock().get(&source).cloned().unwrap();
        let mut changed = entry.sealed.to_vec();
        *changed.last_mut().unwrap() ^= 1;
        let changed = Entry {
            sealed: changed.into(),
            calls: 0,
        };
        cache.entries.lock().insert(source, changed, 500);
        assert!(cache.find(&source).is_none());
        let stats = cache.stats();
        assert_eq!((stats.rejected, stats.entries, stats.bytes), (1, 0, 0));
    }

    #[test]
    fn what_another_process_sealed_is_refused() {
        let (ours, theirs) = (cache(1 << 20), cache(1 << 20));
        let source = store(&theirs, "source", 0, &[7; 100]);
        let entry = theirs.entries.lock().get(&source).cloned().unwrap();
        ours.entries.lock().insert(source, entry, 500);
        assert!(ours.find(&source).is_none());
        assert_eq!(ours.stats().rejected, 1);
    }
}
