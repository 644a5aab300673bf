//! Runs functions in this process, against host services of the caller's choice: for Rust tests, for `nex invoke`, and
//! wherever a function should answer without a server. It is the engine of production, nothing less.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use nex_runtime::harness::Harness;
//!
//! let function = Harness::new()?.load("(subject, payload) => subject.length + payload.length").await?;
//! let reply = function.call("greet", "hello").await?;
//! assert_eq!(reply.body, "10");
//! # Ok(()) }
//! ```

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::engine::{Engine, EngineEvent, Function, FunctionHost, FunctionSpec, Limits, LoadError};
use crate::host_services::{HostError, HostErrorCode, HostRequest, HostResponse, HostServices};
use crate::invocation::{InvokeError, Reply, Trigger};
use crate::logs::{LogLine, LogSink};
use crate::v8::{V8Config, V8Engine};

/// Loads functions into one engine. Its settings apply to functions loaded afterwards.
#[derive(Debug, Clone)]
pub struct Harness {
    engine: Arc<dyn Engine>,
    services: Arc<dyn HostServices>,
    spec: FunctionSpec,
    logs: Option<Arc<dyn LogSink>>,
}

impl Harness {
    /// A harness with the V8 engine, default limits, no environment, and host services that refuse every call.
    ///
    /// # Errors
    /// When V8 cannot be initialised.
    pub fn new() -> io::Result<Self> {
        Ok(Self::with_engine(Arc::new(V8Engine::new(V8Config::default())?)))
    }

    /// A harness with an engine that exists already.
    #[must_use]
    pub fn with_engine(engine: Arc<dyn Engine>) -> Self {
        let workload_type = engine.workload_types().first().copied().unwrap_or_default().to_owned();
        Self {
            engine,
            services: Arc::new(NoServices),
            spec: FunctionSpec {
                id: "harness".into(),
                namespace: "default".into(),
                name: "function".into(),
                workload_type,
                source: Bytes::new(),
                vars: BTreeMap::new(),
                limits: Limits::default(),
            },
            logs: None,
        }
    }

    /// Host services for the functions.
    #[must_use]
    pub fn services(mut self, services: Arc<dyn HostServices>) -> Self {
        self.services = services;
        self
    }

    /// Limits for the functions.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.spec.limits = limits;
        self
    }

    /// Name of the functions, which their stack traces show as `file:///NAME.js`.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.spec.name = name.into();
        self
    }

    /// Environment of the functions: `env.vars` in module form.
    #[must_use]
    pub fn vars(mut self, vars: impl IntoIterator<Item = (String, String)>) -> Self {
        self.spec.vars = vars.into_iter().collect();
        self
    }

    /// Sends log lines here as they come, too; [`HarnessFunction::logs`] has them in any case.
    #[must_use]
    pub fn log_sink(mut self, logs: Arc<dyn LogSink>) -> Self {
        self.logs = Some(logs);
        self
    }

    /// Loads a function from its source.
    ///
    /// # Errors
    /// As [`Engine::load`].
    pub async fn load(&self, source: impl Into<Bytes>) -> Result<HarnessFunction, LoadError> {
        let recorder = Arc::new(Recorder {
            logs: Mutex::default(),
            events: Mutex::default(),
            sink: self.logs.clone(),
        });
        let events = Arc::clone(&recorder);
        let logs: Arc<dyn LogSink> = Arc::<Recorder>::clone(&recorder);
        let host = FunctionHost {
            services: Arc::clone(&self.services),
            logs,
            events: Arc::new(move |event| events.events.lock().push(event)),
        };
        let spec = FunctionSpec {
            source: source.into(),
            ..self.spec.clone()
        };
        Ok(HarnessFunction {
            function: self.engine.load(spec, host).await?,
            recorder,
        })
    }
}

/// A function in a [`Harness`].
#[derive(Debug)]
pub struct HarnessFunction {
    function: Arc<dyn Function>,
    recorder: Arc<Recorder>,
}

impl HarnessFunction {
    /// Calls the function.
    ///
    /// # Errors
    /// As the invocation ends.
    pub async fn call(&self, subject: &str, payload: impl Into<Bytes>) -> Result<Reply, InvokeError> {
        self.trigger(Trigger {
            subject: subject.to_owned(),
            payload: payload.into(),
            ..Trigger::default()
        })
        .await
    }

    /// Calls the function with a whole trigger, headers and reply subject included.
    ///
    /// # Errors
    /// As the invocation ends.
    pub async fn trigger(&self, trigger: Trigger) -> Result<Reply, InvokeError> {
        self.function.call(trigger).await
    }

    /// Calls the function and gathers all that it replies: what it streams, and then its last reply or its error.
    pub async fn stream(&self, trigger: Trigger) -> Vec<Result<Reply, InvokeError>> {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        self.function.invoke(trigger, Box::new(sender));
        let mut replies = Vec::new();
        while let Some(reply) = receiver.recv().await {
            replies.push(reply);
        }
        replies
    }

    /// Everything it has logged so far.
    #[must_use]
    pub fn logs(&self) -> Vec<LogLine> {
        self.recorder.logs.lock().clone()
    }

    /// What the engine has reported about it so far.
    #[must_use]
    pub fn events(&self) -> Vec<EngineEvent> {
        self.recorder.events.lock().clone()
    }
}

#[derive(Debug)]
struct Recorder {
    logs: Mutex<Vec<LogLine>>,
    events: Mutex<Vec<EngineEvent>>,
    sink: Option<Arc<dyn LogSink>>,
}

impl LogSink for Recorder {
    fn log(&self, line: LogLine) {
        if let Some(sink) = &self.sink {
            sink.log(line.clone());
        }
        self.logs.lock().push(line);
    }
}

/// Host services of a harness that was given none.
struct NoServices;

impl HostServices for NoServices {
    fn call(&self, request: HostRequest) -> BoxFuture<'static, Result<HostResponse, HostError>> {
        let (service, method) = request.operation.name();
        let message = format!("{service}.{method}: this harness has no host services");
        std::future::ready(Err(HostError::new(HostErrorCode::Unavailable, message))).boxed()
    }
}
