//! The V8 engine: one isolate on one OS thread for each function, from a pool of blank isolates.
//!
//! An isolate is made from our start-up snapshot before anybody needs it, belongs to one function for the rest of its
//! life, and is thrown away with its thread when a limit was hit. A watchdog thread enforces deadlines from outside,
//! because code that does not come back cannot enforce its own. Some code cannot be stopped at all; then the engine
//! answers the callers, sets the thread to idle priority and reports [`EngineEvent::Condemned`], so that whoever owns the
//! process replaces it.
//!
//! [`EngineEvent::Condemned`]: crate::engine::EngineEvent::Condemned

mod buffers;
mod convert;
mod fatal;
mod function;
mod heap;
mod instance;
mod isolate;
mod loader;
mod ops;
mod pages;
mod platform;
mod thread;
mod thread_priority;
mod watchdog;

use std::fmt;
use std::io;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use self::function::{Report, V8Function, Workload};
use self::heap::IsolateParams;
use self::thread::Assignment;
use self::watchdog::Watchdog;
use crate::engine::{Engine, Function, FunctionHost, FunctionSpec, Limits, LoadError};

/// Settings of a [`V8Engine`].
#[derive(Debug, Clone)]
pub struct V8Config {
    /// Blank isolates kept ready. Default 2; 0 makes each one when it is needed, in about 2 ms.
    pub pool_size: usize,
    /// Bytes of JavaScript heap of the pooled isolates. Default 128 MiB. A function that is to have less gets an isolate
    /// that is made for it.
    pub heap_bytes: u64,
    /// Bytes of stack of the pooled isolates. Default 984 KiB. A function that is to have another gets an isolate that is
    /// made for it.
    pub stack_bytes: u32,
    /// Bytes of compiled code kept for functions that are started again. Default 64 MiB; 0 keeps none.
    pub code_cache_bytes: u64,
    /// Resident bytes of the process above which functions hibernate before their time, least recently used first.
    /// Default none.
    pub memory_high_bytes: Option<u64>,
}

impl Default for V8Config {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            pool_size: 2,
            heap_bytes: limits.heap_bytes,
            stack_bytes: limits.stack_bytes,
            code_cache_bytes: 64 << 20,
            memory_high_bytes: None,
        }
    }
}

/// Runs JavaScript functions on V8. Cheap to clone; the pool ends with the last clone, functions with their handles.
#[derive(Clone)]
pub struct V8Engine {
    shared: Arc<Shared>,
}

struct Shared {
    config: V8Config,
    blanks: Mutex<Vec<oneshot::Sender<Assignment>>>,
    watchdog: Watchdog,
}

impl V8Engine {
    /// Initialises V8, once in a process, and begins to fill the pool.
    ///
    /// # Errors
    /// When the system refuses a thread or V8 refuses our flags.
    pub fn new(config: V8Config) -> io::Result<Self> {
        let watchdog = Watchdog::start()?;
        let shared = Arc::new(Shared {
            config,
            blanks: Mutex::default(),
            watchdog,
        });
        shared.refill()?;
        Ok(Self { shared })
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
}

impl Shared {
    /// Starts a thread that makes a blank isolate and waits for a function.
    fn spawn_blank(&self, params: IsolateParams) -> io::Result<oneshot::Sender<Assignment>> {
        let (sender, receiver) = oneshot::channel();
        let job = Box::new(move || thread::run(params, receiver));
        platform::spawn_isolate_thread("isolate".into(), params.thread_stack_bytes(), job)?;
        Ok(sender)
    }

    fn refill(&self) -> io::Result<()> {
        while self.blanks.lock().len() < self.config.pool_size {
            let blank = self.spawn_blank(IsolateParams::pooled(&self.config))?;
            self.blanks.lock().push(blank);
        }
        Ok(())
    }

    /// Gives the function to a blank isolate, or to a new one when none is there, and refills the pool.
    fn assign(&self, workload: Arc<Workload>, report: Option<Report>) {
        let blank = match IsolateParams::for_function(&self.config, &workload.spec.limits) {
            Some(params) => self.spawn_blank(params),
            None => {
                let pooled = self.blanks.lock().pop();
                pooled.map_or_else(|| self.spawn_blank(IsolateParams::pooled(&self.config)), Ok)
            }
        };
        match blank.map(|blank| {
            blank.send(Assignment {
                workload: Arc::clone(&workload),
                report,
            })
        }) {
            Ok(Ok(())) => {}
            Ok(Err(Assignment { report, .. })) => {
                thread::refuse(
                    &workload,
                    report,
                    LoadError::Engine("a blank isolate's thread had ended".into()),
                );
            }
            Err(error) => workload.instance_failed(&LoadError::Engine(error.to_string())),
        }
        if let Err(error) = self.refill() {
            tracing::warn!(%error, "the pool of isolates could not be refilled");
        }
    }
}

impl fmt::Debug for V8Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("V8Engine")
            .field("config", &self.shared.config)
            .finish_non_exhaustive()
    }
}
