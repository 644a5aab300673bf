//! `warm` and `throughput`: calls to one function that is awake.

use std::time::Duration;

use super::super::failure::Failure;
use super::context::Context;
use super::report::{Benchmark, QUANTILES, Variant};
use super::stage::{Stage, Treatment};
use crate::bench::Generator;
use crate::bench::load::Tally;

/// Latency at a rate.
#[derive(Debug, Clone, Copy)]
pub(super) struct Warm {
    /// Calls per second.
    pub(super) rate: f64,
    /// Time of each repeat.
    pub(super) duration: Duration,
}

/// Calls per second with a window.
#[derive(Debug, Clone, Copy)]
pub(super) struct Throughput {
    /// Calls in flight.
    pub(super) window: usize,
    /// Time of each repeat.
    pub(super) duration: Duration,
}

impl Warm {
    /// Measures.
    pub(super) async fn run(&self, context: &Context, stage: &impl Stage) -> Result<Benchmark, Failure> {
        let Self { rate, duration } = *self;
        context.progress.doing("warm: warming up");
        let (functions, mut generator) = one(context, stage).await?;
        if !context.warm_up.is_zero() {
            generator.open_loop(0, rate, context.warm_up).await?;
        }
        context.progress.step();

        let size = context.payload.size();
        let mut variant = Variant::new(format!("{size} B, {rate} a second"), "");
        let mut repeats: Vec<Tally> = Vec::new();
        let mut lags = Vec::new();
        for repeat in 1..=context.repeats {
            context.progress.doing(format!("warm: repeat {repeat}"));
            let measured = generator.open_loop(0, rate, duration).await?;
            lags.push(measured.lags.quantile(0.99));
            repeats.push(measured.tally);
            variant.timeline.push(measured.timeline);
            context.progress.step();
        }
        stage.remove(functions).await?;
        variant.latencies(&repeats, &QUANTILES);
        variant.figure("generator_lag_p99_us", "sent late, p99 µs", lags);
        Ok(Benchmark {
            benchmark: "warm",
            title: "Warm latency".to_owned(),
            definition: format!(
                "Open loop: {rate} calls a second, evenly spaced, for {duration:?}, whether or not earlier ones have been \
                 answered. Latency counts from when a call was due, not from when it was sent, so that a stall shows in all \
                 calls that it delays. How late the load generator itself sent them is in the figures, and told beside them."
            ),
            excluded: format!(
                "the first {:?}, at the same rate, and the start of the function",
                context.warm_up
            ),
            variants: vec![variant],
        })
    }
}

impl Throughput {
    /// Measures.
    pub(super) async fn run(&self, context: &Context, stage: &impl Stage) -> Result<Benchmark, Failure> {
        let Self { window, duration } = *self;
        context.progress.doing("throughput: warming up");
        let (functions, mut generator) = one(context, stage).await?;
        if !context.warm_up.is_zero() {
            generator.closed_loop(0, window, context.warm_up).await?;
        }
        context.progress.step();

        let size = context.payload.size();
        let mut variant = Variant::new(format!("{size} B, {window} in flight"), "");
        let mut repeats = Vec::new();
        let mut per_second = Vec::new();
        for repeat in 1..=context.repeats {
            context.progress.doing(format!("throughput: repeat {repeat}"));
            let measured = generator.closed_loop(0, window, duration).await?;
            per_second.push(measured.per_second);
            repeats.push(measured.tally);
            context.progress.step();
        }
        stage.remove(functions).await?;
        variant.figure("calls_per_second", "calls/s", per_second);
        variant.latencies(&repeats, &QUANTILES);
        Ok(Benchmark {
            benchmark: "throughput",
            title: "Throughput".to_owned(),
            definition: format!(
                "Closed loop: {window} calls in flight for {duration:?}, the next sent when one is answered. The rate counts \
                 right replies; latencies are round-trip times under that load. Load generator and function share the \
                 machine."
            ),
            excluded: format!(
                "the first {:?}, with the same window, and the start of the function",
                context.warm_up
            ),
            variants: vec![variant],
        })
    }
}

/// Steps of the progress bar of either.
pub(super) fn steps(context: &Context) -> u64 {
    u64::from(context.repeats) + 1
}

/// One function, and what calls it.
async fn one<S: Stage>(context: &Context, stage: &S) -> Result<(Vec<S::Function>, Generator<S::Target>), Failure> {
    let functions = vec![stage.deploy(context.function(0), Treatment::default()).await?];
    let target = stage.target(&functions).await?;
    Ok((functions, context.generator(target)))
}
