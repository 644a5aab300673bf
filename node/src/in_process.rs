//! Functions in the node's own process, under the same quarantine as in agents. What an agent is good for is missing here:
//! code that does not stop cannot be got rid of. The engine parks its thread at idle priority, where it stays until the
//! node ends; quarantine sees to it that no function makes many of them. Code that ends the process ends the node.

use std::fmt;
use std::sync::{Arc, Weak};

use futures::future::BoxFuture;
use nex_runtime::engine::{
    Engine, EngineEvent, EventSink, Function, FunctionHost, FunctionSpec, FunctionState, Invocation, LoadError,
    ProcessInfo,
};
use nex_runtime::invocation::{ErrorKind, InvokeError, ReplySink, Trigger};
use parking_lot::RwLock;
use tokio::runtime::Handle;

use crate::quarantine::{Ledger, Quarantine, QuarantineRules, Record};

/// An engine whose functions are quarantined when they leave too many threads behind.
#[derive(Debug)]
pub struct InProcess {
    engine: Arc<dyn Engine>,
    ledger: Ledger,
    runtime: Handle,
}

impl InProcess {
    /// Guards an engine of this process.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn new(engine: Arc<dyn Engine>, rules: QuarantineRules) -> Self {
        Self {
            engine,
            ledger: Ledger::new(rules),
            runtime: Handle::current(),
        }
    }
}

impl Engine for InProcess {
    fn workload_types(&self) -> &'static [&'static str] {
        self.engine.workload_types()
    }

    fn load(&self, spec: FunctionSpec, host: FunctionHost) -> BoxFuture<'static, Result<Arc<dyn Function>, LoadError>> {
        let guard = Arc::new(Guard {
            engine: self.engine.clone(),
            runtime: self.runtime.clone(),
            artifact: self.ledger.record(&spec.namespace, &spec.source),
            spec,
            host,
            function: RwLock::new(Err(InvokeError::new(
                ErrorKind::NotReady,
                "the function is being started",
            ))),
        });
        Box::pin(async move {
            guard.start().await?;
            Ok(Arc::new(Guarded(guard)) as Arc<dyn Function>)
        })
    }

    fn available_agents(&self) -> usize {
        self.engine.available_agents()
    }

    fn processes(&self) -> Vec<ProcessInfo> {
        self.engine.processes()
    }
}

/// A function, and whether it may be called.
struct Guard {
    engine: Arc<dyn Engine>,
    runtime: Handle,
    artifact: Arc<Record>,
    spec: FunctionSpec,
    host: FunctionHost,
    /// Or what its callers are told.
    function: RwLock<Result<Arc<dyn Function>, InvokeError>>,
}

/// Hears what the engine says of the function, and passes it on.
struct Watch {
    events: Arc<dyn EventSink>,
    guard: Weak<Guard>,
}

impl EventSink for Watch {
    fn event(&self, event: EngineEvent) {
        let condemned = match &event {
            EngineEvent::Condemned { message } => Some(format!("its code did not stop ({message})")),
            _ => None,
        };
        self.events.event(event);
        if let Some(what) = condemned
            && let Some(guard) = self.guard.upgrade()
            && guard.artifact.incident(&what)
            && let Some(quarantine) = guard.artifact.quarantine()
        {
            guard.confine(quarantine);
        }
    }
}

impl Guard {
    /// Loads the function.
    async fn start(self: &Arc<Self>) -> Result<(), LoadError> {
        let quarantined = || match self.artifact.quarantine() {
            Some(quarantine) => Err(LoadError::Quarantined(quarantine.to_string())),
            None => Ok(()),
        };
        quarantined()?;
        let watched = FunctionHost {
            events: Arc::new(Watch {
                events: self.host.events.clone(),
                guard: Arc::downgrade(self),
            }),
            ..self.host.clone()
        };
        let function = self.engine.load(self.spec.clone(), watched).await?;
        let mut current = self.function.write();
        // Its top level may have been one time too many.
        quarantined()?;
        *current = Ok(function);
        Ok(())
    }

    /// Ends the function, with all calls it has, until its quarantine is over.
    fn confine(self: &Arc<Self>, quarantine: Quarantine) {
        let message = quarantine.to_string();
        let refusal = InvokeError::new(ErrorKind::Quarantined, message.clone());
        let ended = {
            let mut current = self.function.write();
            if current
                .as_ref()
                .is_err_and(|error| error.kind == ErrorKind::Quarantined)
            {
                return;
            }
            std::mem::replace(&mut *current, Err(refusal))
        };
        // Not on the engine's own thread, which this is.
        self.runtime.spawn_blocking(move || drop(ended));
        self.host.events.event(EngineEvent::Quarantined {
            since: quarantine.since,
            until: quarantine.until,
            message,
        });
        let guard = Arc::downgrade(self);
        self.runtime.spawn(async move {
            tokio::time::sleep_until(quarantine.ends.into()).await;
            if let Some(guard) = guard.upgrade() {
                guard.release().await;
            }
        });
    }

    async fn release(self: &Arc<Self>) {
        let starting = InvokeError::new(ErrorKind::NotReady, "the function is being started again");
        *self.function.write() = Err(starting);
        self.host.events.event(EngineEvent::Released);
        loop {
            match self.start().await {
                Ok(()) => return,
                // Perhaps by another function with the same bytes, of which this one hears nothing.
                Err(LoadError::Quarantined(_)) => {
                    if let Some(quarantine) = self.artifact.quarantine() {
                        return self.confine(quarantine);
                    }
                    // It has ended meanwhile.
                }
                Err(error) => {
                    let message = error.to_string();
                    *self.function.write() = Err(InvokeError::new(ErrorKind::NotReady, &message));
                    self.host.events.event(EngineEvent::Lost { message });
                    return;
                }
            }
        }
    }

    fn function(&self) -> Result<Arc<dyn Function>, InvokeError> {
        self.function.read().clone()
    }
}

struct Guarded(Arc<Guard>);

impl Function for Guarded {
    fn invoke(&self, trigger: Trigger, replies: Box<dyn ReplySink>) {
        match self.0.function() {
            Ok(function) => function.invoke(trigger, replies),
            Err(error) => replies.finish(Err(error)),
        }
    }

    fn invoke_all(&self, calls: Vec<Invocation>) {
        match self.0.function() {
            Ok(function) => function.invoke_all(calls),
            Err(error) => {
                for call in calls {
                    call.replies.finish(Err(error.clone()));
                }
            }
        }
    }

    fn state(&self) -> Option<FunctionState> {
        self.0.function().ok()?.state()
    }
}

impl fmt::Debug for Guarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Guarded").field(&self.0.function()).finish()
    }
}

#[cfg(test)]
mod tests;
