//! An agent whose functions try to break out of it by system calls, as code that has broken out of V8 would. Tests run it
//! in place of `nex-agent`: a function loads whatever its source; a call names an attempt and what it is aimed at, and is
//! answered with JSON, `{"probe": …, "outcome": "succeeded" | "refused", "detail": …}`. An attempt may also end the agent.

#![allow(unsafe_code, reason = "attacks are made of system calls")]

mod probes;

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use clap::Parser;
use futures::future::BoxFuture;
use nex_agent::process::{Options, run};
use nex_runtime::engine::{Engine, Function, FunctionHost, FunctionSpec, LoadError};
use nex_runtime::invocation::{ReplySink, Trigger};

#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

#[derive(Debug)]
struct Attacker;

impl Engine for Attacker {
    fn workload_types(&self) -> &'static [&'static str] {
        &["v8"]
    }

    fn load(&self, _: FunctionSpec, _: FunctionHost) -> BoxFuture<'static, Result<Arc<dyn Function>, LoadError>> {
        Box::pin(async { Ok(Arc::new(Self) as Arc<dyn Function>) })
    }
}

impl Function for Attacker {
    fn invoke(&self, trigger: Trigger, replies: Box<dyn ReplySink>) {
        // On a thread of its own, which some attempts change for good.
        std::thread::spawn(move || {
            let payload = String::from_utf8_lossy(&trigger.payload).into_owned();
            let (probe, target) = payload.split_once(' ').unwrap_or((&payload, ""));
            let (outcome, detail) = match probes::attempt(probe, target) {
                Ok(detail) => ("succeeded", detail),
                Err(error) => ("refused", error.to_string()),
            };
            let answer = serde_json::json!({ "probe": probe, "outcome": outcome, "detail": detail });
            replies.finish(Ok(Bytes::from(answer.to_string()).into()));
        });
    }
}

fn main() {
    let Arguments { options } = Arguments::parse();
    run(&options, || Ok::<_, Infallible>(Arc::new(Attacker) as Arc<dyn Engine>))
}
