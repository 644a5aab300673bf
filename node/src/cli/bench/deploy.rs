//! `deploy`: from source code to the first reply.

use std::time::{Duration, Instant};

use super::super::failure::Failure;
use super::context::Context;
use super::report::{Benchmark, Variant};
use super::stage::{Stage, Treatment};
use crate::bench::load::{Miss, Tally};

/// Deployments before those that are measured.
const WARM_UP: u32 = 3;

/// What to measure.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deploy {
    /// Functions deployed in each repeat.
    pub(super) functions: u32,
}

/// Times of one deployment, from the request to run the function.
struct Times {
    prepared: Duration,
    accepted: Duration,
    answered: Result<Duration, Miss>,
}

impl Deploy {
    /// Steps of the progress bar.
    pub(super) fn steps(&self, context: &Context) -> u64 {
        u64::from(context.repeats) + 1
    }

    /// Measures. `uploads`: whether there is anything to be done before the request.
    pub(super) async fn run(&self, context: &Context, stage: &impl Stage, uploads: bool) -> Result<Benchmark, Failure> {
        let mut numbers = 0_u64..;
        let mut next = || numbers.next().unwrap_or_default();
        context.progress.doing("deploy: warming up");
        for _ in 0..WARM_UP {
            self.one(context, stage, next()).await?;
        }
        context.progress.step();

        let mut variant = Variant::new("deploy", "");
        let (mut prepared, mut accepted, mut answered) = (Vec::new(), Vec::new(), Vec::new());
        for repeat in 1..=context.repeats {
            context.progress.doing(format!("deploy: repeat {repeat}"));
            let [mut preparing, mut accepting, mut answering] = [(); 3].map(|()| Tally::new(context.timeout));
            for _ in 0..self.functions {
                let times = self.one(context, stage, next()).await?;
                preparing.add(Ok(times.prepared));
                accepting.add(Ok(times.accepted));
                answering.add(times.answered);
            }
            prepared.push(preparing);
            accepted.push(accepting);
            answered.push(answering);
            context.progress.step();
        }
        let quantile = |repeats: &[Tally], quantile| -> Vec<f64> {
            let values = repeats.iter().map(|repeat| repeat.latencies.quantile(quantile));
            values.collect()
        };
        if uploads {
            variant.figure("upload_p50_us", "upload p50 µs", quantile(&prepared, 0.5));
        }
        variant.figure("accepted_p50_us", "accepted p50 µs", quantile(&accepted, 0.5));
        variant.figure("accepted_p90_us", "accepted p90 µs", quantile(&accepted, 0.9));
        variant.latencies(
            &answered,
            &[
                (0.5, "first_reply_p50_us", "first reply p50 µs"),
                (0.9, "first_reply_p90_us", "first reply p90 µs"),
                (0.99, "first_reply_p99_us", "first reply p99 µs"),
            ],
        );
        let submit = if uploads {
            "the deploy request is sent; the artefact has been uploaded to the object store before, which is told apart"
        } else {
            "the source is given to the engine"
        };
        Ok(Benchmark {
            benchmark: "deploy",
            title: "Deploy".to_owned(),
            definition: format!(
                "{} functions in each repeat, one after the other, no two the same. From when {submit}. Accepted: until the \
                 answer that it runs. First reply: until a call made right after that has got the full, right reply{}.",
                self.functions,
                if uploads { ", over another connection" } else { "" }
            ),
            excluded: format!("{WARM_UP} deployments of warm-up; stopping the functions again"),
            variants: vec![variant],
        })
    }

    async fn one(&self, context: &Context, stage: &impl Stage, number: u64) -> Result<Times, Failure> {
        let source = context.function(number);
        let start = Instant::now();
        let request = stage.prepare(source, Treatment::default()).await?;
        let prepared = start.elapsed();
        let start = Instant::now();
        let functions = vec![stage.start(request).await?];
        let accepted = start.elapsed();
        let mut generator = context.generator(stage.target(&functions).await?);
        let answered = generator.call(0).await?.map(|_| start.elapsed());
        stage.remove(functions).await?;
        Ok(Times {
            prepared,
            accepted,
            answered,
        })
    }
}
