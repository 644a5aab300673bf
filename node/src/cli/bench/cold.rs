//! `cold`: calls to functions for which no isolate exists.

use std::time::Duration;

use bytes::Bytes;
use nex_runtime::v8::V8Config;
use tokio::time::sleep;

use super::super::failure::Failure;
use super::context::Context;
use super::in_process::InProcess;
use super::report::{Benchmark, QUANTILES, Variant};
use super::stage::{Stage, Treatment};
use crate::bench::body::{self, Form};
use crate::bench::load::Tally;
use crate::bench::{Generator, Payload};

/// Between two calls: for the pool to be filled again, and for the machine to come to rest.
const PAUSE: Duration = Duration::from_millis(25);
/// Idle time after which functions in this process hibernate.
const HIBERNATE_AFTER: Duration = Duration::from_millis(20);
/// The same for those in agents, which must live until their deployment has been answered.
const HIBERNATE_AFTER_IN_AGENTS: Duration = Duration::from_millis(500);

/// What to measure.
#[derive(Debug, Clone)]
pub(super) struct Cold {
    /// Functions of each variant; each is called once in each repeat.
    pub(super) functions: u32,
    /// Bytes of source.
    pub(super) sizes: Vec<usize>,
}

impl Cold {
    /// Steps of the progress bar.
    pub(super) fn steps(&self, context: &Context, engine: bool) -> u64 {
        let variants = if engine { 4 } else { 1 };
        self.bodies(context).len() as u64 * variants * u64::from(context.repeats + 1)
    }

    fn bodies(&self, context: &Context) -> Vec<Body> {
        match &context.own {
            Some(_) => vec![Body::Own],
            None => self.sizes.iter().copied().map(Body::Generated).collect(),
        }
    }

    /// Measures the engine in this process.
    pub(super) async fn in_process(&self, context: &Context) -> Result<Benchmark, Failure> {
        let mut runners = Vec::new();
        for body in self.bodies(context) {
            for (pool_size, pool) in [(V8Config::default().pool_size, "cold-P"), (0, "cold-E")] {
                for (code_cache_bytes, cache) in [(V8Config::default().code_cache_bytes, ", code cache"), (0, "")] {
                    let config = V8Config {
                        pool_size,
                        code_cache_bytes,
                        ..V8Config::default()
                    };
                    let stage = InProcess::new(config, &context.namespace)?;
                    let size = body.label(context);
                    let variant = Variant::new(format!("{size}, {pool}{cache}"), size);
                    let runner = Runner::prepare(context, &stage, self, body, variant, HIBERNATE_AFTER).await?;
                    runners.push((stage, runner));
                }
            }
        }
        // In turn, so that whatever else goes on in the machine meets all of them.
        for _ in 0..context.repeats {
            for (stage, runner) in &mut runners {
                runner.repeat(context, stage).await?;
            }
        }
        Ok(Benchmark {
            definition: format!(
                "Calls to {} different functions of each kind, none of which has an isolate: it hibernates. From the request \
                 to the full, right reply. Cold-P: a blank isolate was waiting in the pool. Cold-E: nothing was pooled, so \
                 the isolate is made while the caller waits. Code cache: the engine has kept compiled code of the function; \
                 else it keeps none and compiles again.",
                self.functions
            ),
            variants: runners.into_iter().map(|(_, runner)| runner.finish()).collect(),
            ..self.benchmark()
        })
    }

    /// Measures functions in agents, `over` what they are called. What is pooled and cached there is as it is configured.
    pub(super) async fn in_agents(
        &self,
        context: &Context,
        stage: &impl Stage,
        over: &str,
    ) -> Result<Benchmark, Failure> {
        let mut variants = Vec::new();
        // One after the other, or a node would need room for all of them at once.
        for body in self.bodies(context) {
            let size = body.label(context);
            let variant = Variant::new(format!("{size}, hibernated"), size);
            let after = HIBERNATE_AFTER_IN_AGENTS;
            let mut runner = Runner::prepare(context, stage, self, body, variant, after).await?;
            for _ in 0..context.repeats {
                runner.repeat(context, stage).await?;
            }
            let functions = std::mem::take(&mut runner.functions);
            variants.push(runner.finish());
            stage.remove(functions).await?;
        }
        Ok(Benchmark {
            definition: format!(
                "Calls over {over} to {} different functions of each kind, none of which has an isolate: they hibernate after \
                 {HIBERNATE_AFTER_IN_AGENTS:?} without calls. From the request to the full, right reply. What is pooled and \
                 cached is as it is configured.",
                self.functions
            ),
            variants,
            ..self.benchmark()
        })
    }

    fn benchmark(&self) -> Benchmark {
        Benchmark {
            benchmark: "cold",
            title: "Cold start".to_owned(),
            definition: String::new(),
            excluded: format!(
                "deploying the functions; one unmeasured call to each of them, after which the engine has taken its code for \
                 the code cache; the {PAUSE:?} between calls, in which the pool is filled again; starting an agent"
            ),
            variants: Vec::new(),
        }
    }
}

/// Whose source is called.
#[derive(Debug, Clone, Copy)]
enum Body {
    /// A bundle of so many bytes that echoes.
    Generated(usize),
    /// The operator's.
    Own,
}

impl Body {
    fn label(self, context: &Context) -> String {
        let bytes = match self {
            Self::Generated(bytes) => bytes,
            Self::Own => context.own.as_ref().map_or(0, Bytes::len),
        };
        if bytes.is_multiple_of(1024) {
            format!("{} KB", bytes / 1024)
        } else {
            format!("{bytes} B")
        }
    }

    fn source(self, context: &Context, number: u64) -> Bytes {
        match self {
            Self::Generated(bytes) => body::echo(Form::Module, bytes, number).into(),
            Self::Own => context.function(number),
        }
    }
}

/// One variant on its way.
struct Runner<S: Stage> {
    functions: Vec<S::Function>,
    generator: Generator<S::Target>,
    after: Duration,
    variant: Variant,
    repeats: Vec<Tally>,
}

impl<S: Stage> Runner<S> {
    /// Deploys the functions and lets them fall asleep.
    async fn prepare(
        context: &Context,
        stage: &S,
        cold: &Cold,
        body: Body,
        variant: Variant,
        after: Duration,
    ) -> Result<Self, Failure> {
        context.progress.doing(format!("cold, {}: deploying", variant.name));
        let treatment = Treatment {
            hibernate_after: Some(after),
        };
        let mut functions = Vec::new();
        for number in 0..u64::from(cold.functions) {
            functions.push(stage.deploy(body.source(context, number), treatment).await?);
        }
        let mut generator = context.generator(stage.target(&functions).await?);
        if matches!(body, Body::Generated(_)) {
            generator.set_payload(Payload::echo(context.payload.size()));
        }
        // The engine keeps the code of functions that have been called. A failure shows again where it counts.
        for to in 0..functions.len() {
            _ = generator.call(to).await?;
        }
        context.progress.step();
        Ok(Self {
            functions,
            generator,
            after,
            variant,
            repeats: Vec::new(),
        })
    }

    /// Calls each function once.
    async fn repeat(&mut self, context: &Context, stage: &S) -> Result<(), Failure> {
        let number = self.repeats.len() + 1;
        context
            .progress
            .doing(format!("cold, {}: repeat {number}", self.variant.name));
        stage.asleep(&self.functions, self.after).await?;
        let mut tally = Tally::new(context.timeout);
        for to in 0..self.functions.len() {
            sleep(PAUSE).await;
            tally.add(self.generator.call(to).await?);
        }
        self.repeats.push(tally);
        context.progress.step();
        Ok(())
    }

    fn finish(self) -> Variant {
        let mut variant = self.variant;
        variant.latencies(&self.repeats, &QUANTILES);
        variant
    }
}
