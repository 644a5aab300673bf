//! The V8 engine: one isolate on one OS thread for each instance of a function, from a pool of blank isolates.
//!
//! An isolate is made from our start-up snapshot before anybody needs it, belongs to one function for the rest of its
//! life, and is thrown away with its thread when a limit was hit. A watchdog thread enforces deadlines from outside,
//! because code that does not come back cannot enforce its own. Some code cannot be stopped at all; then the engine
//! answers the callers, sets the thread to idle priority and reports [`EngineEvent::Condemned`], so that whoever owns the
//! process replaces it.
//!
//! [`EngineEvent::Condemned`]: crate::engine::EngineEvent::Condemned

mod buffers;
mod call;
mod chance;
mod code_cache;
mod convert;
mod discard;
mod fatal;
mod function;
mod heap;
mod host_calls;
mod instance;
mod isolate;
mod loader;
mod lookup_caches;
mod ops;
mod pages;
mod peek;
mod platform;
mod pool;
mod pressure;
mod rejections;
mod remains;
mod residents;
mod runners;
mod soft_limits;
mod stack;
mod stack_trace;
mod stub_caches;
mod thread;
mod thread_id;
mod trim;
mod watchdog;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::oneshot;

use self::code_cache::CodeCache;
pub use self::code_cache::CodeCacheStats;
use self::function::{V8Function, Workload};
use self::instance::{Load, Report};
use self::pool::Pool;
use self::residents::Residents;
use self::thread::Assignment;
use self::watchdog::Watchdog;
use crate::engine::{Engine, Function, FunctionHost, FunctionSpec, Limits, LoadError};

/// Settings of a [`V8Engine`].
#[derive(Debug, Clone)]
pub struct V8Config {
    /// Blank isolates kept ready. Default 4; 0 makes each one when it is needed, in about 3 ms.
    pub pool_size: usize,
    /// Bytes of JavaScript heap of the pooled isolates. Default 128 MiB. A function that is to have less gets an isolate
    /// that is made for it.
    pub heap_bytes: u64,
    /// Bytes of stack of the pooled isolates. Default 984 KiB. A function that is to have more gets an isolate that is made
    /// for it.
    pub stack_bytes: u32,
    /// Bytes of compiled code kept for functions that are started again. Default 64 MiB; 0 keeps none.
    pub code_cache_bytes: u64,
    /// Resident bytes of the process above which functions hibernate before their time, least recently used first.
    /// Default none.
    pub memory_high_bytes: Option<u64>,
    /// Lets the kernel merge pages of this process that are alike (KSM), if it is set up to (`/sys/kernel/mm/ksm/run`):
    /// idle isolates share about a tenth of theirs. A page that was merged takes longer to write to, from which functions
    /// might tell what others in the process have in memory. Default no.
    pub merge_memory: bool,
    /// Awake instances of all functions together. Default 1,000: V8 needs some 32 memory mappings for each, of which Linux
    /// allows a process 65,530. One more makes the idle one that was used the longest ago hibernate; when none is idle,
    /// calls are answered `overloaded`.
    pub max_instances: usize,
}

impl Default for V8Config {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            pool_size: 4,
            heap_bytes: limits.heap_bytes,
            stack_bytes: limits.stack_bytes,
            code_cache_bytes: 64 << 20,
            memory_high_bytes: None,
            merge_memory: false,
            max_instances: 1_000,
        }
    }
}

/// Runs JavaScript functions on V8. Cheap to clone; the pool ends with the last clone, functions with their handles.
#[derive(Clone)]
pub struct V8Engine {
    shared: Arc<Shared>,
}

struct Shared {
    pool: Arc<Pool>,
    residents: Residents,
    code_cache: CodeCache,
    watchdog: Watchdog,
    /// Processors of this machine.
    processors: usize,
    max_instances: usize,
    started: Instant,
}

/// Version of V8, for example `15.0.245.2-rusty`.
#[must_use]
pub fn version() -> &'static str {
    deno_core::v8::VERSION_STRING
}

impl V8Engine {
    /// Initialises V8, once in a process, and fills the pool.
    ///
    /// # Errors
    /// When the system refuses a thread or V8 refuses our flags.
    pub fn new(config: V8Config) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            watchdog: Watchdog::start()?,
            residents: Residents::default(),
            code_cache: CodeCache::new(config.code_cache_bytes, isolate::STARTUP_SNAPSHOT),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            max_instances: config.max_instances.max(1),
            started: Instant::now(),
            pool: Pool::new(config),
        });
        if shared.pool.config().merge_memory {
            platform::merge_memory()?;
        }
        shared.pool.refill()?;
        if let Some(high) = shared.pool.config().memory_high_bytes {
            pressure::watch(Arc::downgrade(&shared), high)?;
        }
        Ok(Self { shared })
    }

    /// What is kept of compiled code, and how often it served.
    #[must_use]
    pub fn code_cache_stats(&self) -> CodeCacheStats {
        self.shared.code_cache.stats()
    }
}

impl Engine for V8Engine {
    fn workload_types(&self) -> &'static [&'static str] {
        &["v8"]
    }

    fn load(&self, spec: FunctionSpec, host: FunctionHost) -> BoxFuture<'static, Result<Arc<dyn Function>, LoadError>> {
        let shared = Arc::clone(&self.shared);
        async move {
            let function = V8Function(Arc::new(Workload::new(spec, host, shared)?));
            let (report, result) = oneshot::channel();
            function.0.start(report);
            result
                .await
                .map_err(|_| LoadError::Engine("the isolate's thread ended".into()))??;
            let function: Arc<dyn Function> = Arc::new(function);
            Ok(function)
        }
        .boxed()
    }

    fn ready(&self) -> BoxFuture<'static, ()> {
        let shared = Arc::clone(&self.shared);
        async move { shared.pool.filled().await }.boxed()
    }
}

impl Shared {
    /// Has an isolate load the function, and serve it from then on.
    fn assign(&self, workload: Arc<Workload>, report: Option<Report>) {
        let Some(place) = self.residents.take_place(self.max_instances) else {
            let message = format!("all {} instances that may be awake are at work", self.max_instances);
            return workload.load_failed(Load::new(report), LoadError::Overloaded(message));
        };
        let assignment = Assignment {
            workload,
            report,
            place,
        };
        if let Err((Assignment { workload, report, .. }, error)) = self.pool.assign(assignment) {
            workload.load_failed(Load::new(report), error);
        }
    }

    /// Makes up for the isolates that were assigned; called when the haste is over.
    fn refill(&self) {
        self.pool.refill_or_warn();
    }

    /// Milliseconds from the start of the engine.
    fn milliseconds(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.started);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

impl fmt::Debug for V8Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("V8Engine")
            .field("config", self.shared.pool.config())
            .finish_non_exhaustive()
    }
}
