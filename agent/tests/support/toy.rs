//! An engine whose functions do one thing each, named by their source: what tests need an engine to do at will, without
//! V8. The node's tests use it as well.

use std::sync::Arc;

use bytes::Bytes;
use futures::executor::block_on;
use futures::future::{BoxFuture, join_all};
use nex_runtime::engine::{Engine, EngineEvent, Function, FunctionHost, FunctionSpec, Limit, LimitHit, LoadError};
use nex_runtime::host_services::{HostErrorCode, HostRequest, HostResult, Operation};
use nex_runtime::invocation::{ErrorKind, InvokeError, ReplySink, Trigger};
use nex_runtime::logs::{LogLevel, LogLine};
use parking_lot::Mutex;

/// The engine.
#[derive(Debug)]
pub(crate) struct Toy;

impl Engine for Toy {
    fn workload_types(&self) -> &'static [&'static str] {
        &["v8"]
    }

    fn load(&self, spec: FunctionSpec, host: FunctionHost) -> BoxFuture<'static, Result<Arc<dyn Function>, LoadError>> {
        Box::pin(async move {
            let action = String::from_utf8_lossy(&spec.source).into_owned();
            match action.as_str() {
                "load-abort" => std::process::abort(),
                "load-error" => return Err(LoadError::Syntax("no".to_owned())),
                // Asks whoever runs it first, and dies of a no.
                "load-gate" if host.services.call(get("load")).await.is_err() => std::process::abort(),
                _ => {}
            }
            let kept = Mutex::default();
            let id = spec.id;
            Ok(Arc::new(Player { id, action, host, kept }) as Arc<dyn Function>)
        })
    }
}

#[derive(Debug)]
struct Player {
    id: String,
    action: String,
    host: FunctionHost,
    /// Calls never answered.
    kept: Mutex<Vec<Box<dyn ReplySink>>>,
}

fn get(key: &str) -> HostRequest {
    HostRequest {
        operation: Operation::KvGet {
            bucket: None,
            key: key.to_owned(),
        },
        payload: Bytes::new(),
    }
}

impl Function for Player {
    fn invoke(&self, trigger: Trigger, mut replies: Box<dyn ReplySink>) {
        let number = || String::from_utf8_lossy(&trigger.payload).parse().unwrap_or(0_usize);
        match self.action.as_str() {
            "echo" | "load-gate" => replies.finish(Ok(trigger.payload.into())),
            "pid" => replies.finish(Ok(Bytes::from(std::process::id().to_string()).into())),
            "throw" => replies.finish(Err(InvokeError {
                kind: ErrorKind::Exception,
                message: "TypeError: x".to_owned(),
                name: Some("TypeError".to_owned()),
                stack: Some("at toy".to_owned()),
            })),
            "stream" => {
                for i in 0..number() {
                    replies.stream(Bytes::from(i.to_string()).into());
                }
                replies.finish(Ok(Bytes::new().into()));
            }
            // Answers with the value of the key that the payload names, once the host has it.
            "gate" => {
                let services = self.host.services.clone();
                std::thread::spawn(move || {
                    let outcome = block_on(services.call(get(&String::from_utf8_lossy(&trigger.payload))));
                    replies.finish(match outcome {
                        Ok(response) => Ok(response.payload.into()),
                        Err(error) => Err(InvokeError::new(ErrorKind::HostService, error.to_string())),
                    });
                });
            }
            // Stores the payload and answers with the revision.
            "set" => {
                let request = HostRequest {
                    operation: Operation::KvSet {
                        bucket: None,
                        key: "k".to_owned(),
                    },
                    payload: trigger.payload,
                };
                let services = self.host.services.clone();
                std::thread::spawn(move || {
                    replies.finish(match block_on(services.call(request)) {
                        Ok(response) => match response.result {
                            HostResult::Revision(revision) => Ok(Bytes::from(revision.to_string()).into()),
                            other => Err(InvokeError::new(ErrorKind::Exception, format!("{other:?}"))),
                        },
                        Err(error) => Err(InvokeError::new(ErrorKind::HostService, error.to_string())),
                    });
                });
            }
            // Starts so many host calls at once and answers how many were refused for being too many.
            "pile" => {
                let services = self.host.services.clone();
                let count = number();
                std::thread::spawn(move || {
                    let outcomes = block_on(join_all((0..count).map(|_| services.call(get("pile")))));
                    let refused = outcomes
                        .iter()
                        .filter(|outcome| matches!(outcome, Err(error) if error.code == HostErrorCode::LimitExceeded))
                        .count();
                    replies.finish(Ok(Bytes::from(refused.to_string()).into()));
                });
            }
            // Starts a host call, gives it up once a second one is answered, and answers.
            "cancel" => {
                let services = self.host.services.clone();
                std::thread::spawn(move || {
                    block_on(async {
                        let mut given_up = services.call(get("cancel"));
                        assert!(futures::poll!(given_up.as_mut()).is_pending());
                        _ = services.call(get("go")).await;
                    });
                    replies.finish(Ok(Bytes::new().into()));
                });
            }
            "log" => {
                for i in 0..number() {
                    self.host.logs.log(LogLine {
                        level: LogLevel::Info,
                        text: i.to_string(),
                    });
                }
                replies.finish(Ok(Bytes::new().into()));
            }
            "event" => {
                self.host.events.event(EngineEvent::LimitHit(LimitHit {
                    limit: Limit::HeapBytes,
                    allowed: 1,
                    measured: 2,
                }));
                replies.finish(Ok(Bytes::new().into()));
            }
            "condemn" => {
                replies.finish(Err(InvokeError::new(ErrorKind::WallTimeout, "toy")));
                self.host.events.event(EngineEvent::Condemned {
                    message: "toy".to_owned(),
                });
            }
            "drop" => drop(replies),
            "keep" => self.kept.lock().push(replies),
            "abort" => std::process::abort(),
            // As V8 does: on a thread that bears the name of the function.
            "crash" => {
                let thread = std::thread::Builder::new().name(self.id.clone());
                let crashed = thread.spawn(|| std::process::abort());
                _ = crashed.expect("a thread").join();
            }
            // On purpose: the agent must end with the panic's exit code.
            "panic" => panic!("toy panic"),
            other => replies.finish(Err(InvokeError::new(ErrorKind::Exception, other))),
        }
    }
}
