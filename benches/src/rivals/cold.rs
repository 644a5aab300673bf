//! Cold starts: the first call of a function that nothing runs yet, from the request to its checked reply. Everybody has
//! the source in memory by then; what is measured is making an isolate, compiling, running the top level, and the call.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use hyper::Method;
use nex_node::bench::load::{Miss, Tally};
use nex_node::bench::{Estimate, process};
use tokio::time::{sleep, timeout};

use super::bundle::{Platform, Size};
use super::figures::{Lineup, Missing, Name, ratios, show};
use super::http::Pool;
use super::launch::{Folder, Program, Server};
use super::nex::{Deployed, Engine, Setup};
use super::plot::{Bar, Family, Group, Scale, Section};
use super::setup::Rivals;
use crate::Options;
use crate::contender::Process;
use crate::echo::PATIENCE;
use crate::report::Table;

const WORKERD: &str = "workerd, worker loader";
/// Bytes of a request.
const SIZE: usize = 128;
/// Between two starts, for whatever goes on after the reply: pools are filled again, threads end.
const PAUSE: Duration = Duration::from_millis(20);
/// Functions started unmeasured at the beginning of each repeat.
const WARM_UP: usize = 2;

/// One of those compared.
struct Contender {
    name: Name,
    starter: Starter,
    /// Whose processor time counts; nobody's, if it is this process.
    processes: Vec<u32>,
    /// Whether it differs from another one only in what large functions show.
    only_large: bool,
}

/// How functions are started.
enum Starter {
    /// In this process.
    Engine(Engine),
    /// By a node and its agents.
    Deployed(Box<Deployed>),
    /// By a server that makes something for each function: an isolate, a worker, a thread.
    Http {
        pool: Pool,
        platform: Platform,
        sources: Vec<String>,
        _process: Box<Process>,
    },
}

/// What the repeats gave for one contender.
struct Measured {
    name: Name,
    /// Milliseconds, of each repeat.
    medians: Vec<f64>,
    tally: Tally,
    processor: Option<Duration>,
}

/// What becomes of it in the report.
pub(crate) struct Results {
    pub(crate) markdown: String,
    pub(crate) plot: Section,
    pub(crate) missing: Vec<Missing>,
}

/// Measures everybody in turn, with `functions` functions of each size.
pub(crate) async fn run(
    options: &Options,
    functions: usize,
    url: &str,
    rivals: &Rivals,
    folder: &Folder,
) -> Result<Results> {
    let mut lineup = line_up(url, rivals, folder).await;
    let mut markdown = String::new();
    let mut groups = Vec::new();
    for size in [Size::Small, Size::Large] {
        let contenders = lineup.contenders.iter_mut();
        let contenders = contenders
            .filter(|contender| size == Size::Large || !contender.only_large)
            .collect();
        let measured = measure(options, contenders, functions, size).await?;
        let title = format!("Cold start of a {}", size.label());
        markdown += &format!("### {title}\n\n{}\n", table(&measured));
        groups.push(group(title, &measured));
    }
    Ok(Results {
        markdown,
        plot: Section {
            title: "Cold start: milliseconds to the first reply, median (logarithmic)".to_owned(),
            groups,
        },
        missing: lineup.missing,
    })
}

async fn line_up(url: &str, rivals: &Rivals, folder: &Folder) -> Lineup<Contender> {
    const POOLED: Setup = Setup {
        pooled: true,
        cached: true,
    };
    let bare = |setup| Setup { pooled: false, ..setup };
    let uncached = |setup| Setup { cached: false, ..setup };
    let mut lineup = Lineup::default();
    for (label, name, setup) in [
        ("nex over NATS, isolate pooled", "pooled", POOLED),
        (
            "nex over NATS, isolate pooled, no code cache",
            "pooled-uncached",
            uncached(POOLED),
        ),
        ("nex over NATS, nothing pooled", "bare", bare(POOLED)),
        (
            "nex over NATS, nothing pooled, no code cache",
            "bare-uncached",
            uncached(bare(POOLED)),
        ),
    ] {
        lineup.add(label, deployed(url, label, name, setup).await);
    }
    for (label, setup) in [
        ("nex engine alone, isolate pooled", POOLED),
        ("nex engine alone, isolate pooled, no code cache", uncached(POOLED)),
        ("nex engine alone, nothing pooled", bare(POOLED)),
        (
            "nex engine alone, nothing pooled, no code cache",
            uncached(bare(POOLED)),
        ),
    ] {
        lineup.add(label, engine(label, setup));
    }
    for (server, platform, label) in [
        (Server::Workerd, Platform::Workerd, WORKERD),
        (Server::Deno, Platform::Deno, "Deno, new Worker"),
        (Server::Node, Platform::Node, "Node.js, worker_threads"),
    ] {
        lineup.add(label, served(rivals, folder, server, platform, label).await);
    }
    lineup
}

async fn deployed(url: &str, label: &'static str, name: &str, setup: Setup) -> Result<Contender> {
    let deployed = Deployed::start(url, name, setup).await?;
    Ok(Contender {
        name: Name {
            label,
            family: Family::Nex,
        },
        processes: vec![deployed.process()?],
        starter: Starter::Deployed(Box::new(deployed)),
        only_large: !setup.cached,
    })
}

fn engine(label: &'static str, setup: Setup) -> Result<Contender> {
    Ok(Contender {
        name: Name {
            label,
            family: Family::NexPart,
        },
        starter: Starter::Engine(Engine::new(setup)?),
        processes: Vec::new(),
        only_large: !setup.cached,
    })
}

async fn served(
    rivals: &Rivals,
    folder: &Folder,
    server: Server,
    platform: Platform,
    label: &'static str,
) -> Result<Contender> {
    let name = format!("{server:?}-cold");
    let (process, socket) = rivals.serve(server, Program::Cold, folder, &name).await?;
    Ok(Contender {
        name: Name {
            label,
            family: Family::Rival,
        },
        processes: vec![process.id()?],
        starter: Starter::Http {
            pool: Pool::new(vec![socket], 1),
            platform,
            sources: Vec::new(),
            _process: Box::new(process),
        },
        only_large: false,
    })
}

impl Starter {
    /// Makes ready to start these functions.
    async fn prepare(&mut self, size: Size, numbers: &[u64]) -> Result<()> {
        match self {
            Self::Engine(engine) => engine.load(size, numbers).await,
            Self::Deployed(deployed) => deployed.load(size, numbers).await,
            Self::Http { platform, sources, .. } => {
                *sources = numbers.iter().map(|number| size.source(*number, *platform)).collect();
                Ok(())
            }
        }
    }

    /// Hands over one function, if that was not done before, without starting it.
    async fn deploy(&self, index: usize, id: &str) -> Result<()> {
        if let Self::Http { pool, sources, .. } = self {
            let source = sources.get(index).context("no such function")?;
            pool.call(&Method::PUT, &path(id), Bytes::from(source.clone())).await?;
        }
        Ok(())
    }

    /// Calls one for the first time.
    async fn call(&mut self, index: usize, id: &str, request: Bytes) -> Result<Bytes, Miss> {
        let error = |error: String| Miss::Error(error);
        let call = async {
            match self {
                Self::Engine(engine) => engine.call(index, request).await.map_err(error),
                Self::Deployed(deployed) => deployed.call(index, request).await.map_err(error),
                Self::Http { pool, .. } => {
                    let reply = pool.call(&Method::POST, &path(id), request).await;
                    reply.map_err(|failed| error(failed.to_string()))
                }
            }
        };
        timeout(PATIENCE, call).await.map_err(|_| Miss::Missing)?
    }

    /// Ends one, where that can be asked for.
    async fn forget(&self, id: &str) -> Result<()> {
        if let Self::Http { pool, .. } = self {
            pool.call(&Method::DELETE, &path(id), Bytes::new()).await?;
        }
        Ok(())
    }
}

fn path(id: &str) -> String {
    format!("/?{id}")
}

async fn measure(
    options: &Options,
    mut contenders: Vec<&mut Contender>,
    functions: usize,
    size: Size,
) -> Result<Vec<Measured>> {
    let each = functions.div_ceil(options.repeats);
    let mut measured: Vec<Measured> = contenders.iter().map(|contender| Measured::of(contender)).collect();
    for repeat in 1..=options.repeats {
        for (contender, measured) in contenders.iter_mut().zip(&mut measured) {
            let label = contender.name.label;
            eprintln!("{}, repeat {repeat} of {}: {label}", size.label(), options.repeats);
            let first = repeat as u64 * 10_000;
            let numbers: Vec<u64> = (first..).take(WARM_UP + each).collect();
            let (tally, processor) = start_all(contender, size, &numbers)
                .await
                .with_context(|| format!("{label}, {}", size.label()))?;
            measured.medians.push(tally.latencies.quantile(0.5) / 1000.0);
            measured.tally.merge(&tally);
            if let Some(total) = &mut measured.processor {
                *total += processor;
            }
        }
    }
    Ok(measured)
}

/// Starts one after the other, the first ones unmeasured.
async fn start_all(contender: &mut Contender, size: Size, numbers: &[u64]) -> Result<(Tally, Duration)> {
    let Contender { starter, processes, .. } = contender;
    let mut tally = Tally::new(PATIENCE);
    let mut processor = Duration::ZERO;
    starter.prepare(size, numbers).await?;
    for (index, &number) in numbers.iter().enumerate() {
        let id = &size.name(number);
        starter.deploy(index, id).await?;
        sleep(PAUSE).await;
        let request = format!("{index:0SIZE$}");
        let before = processor_time(processes);
        let sent = Instant::now();
        let reply = starter.call(index, id, Bytes::from(request.clone())).await;
        let elapsed = sent.elapsed();
        let after = processor_time(processes);
        let outcome = reply.and_then(|reply| check(&reply, &size.reply(number, &request)));
        starter.forget(id).await?;
        if index >= WARM_UP {
            tally.add(outcome.map(|()| elapsed));
            processor += after.saturating_sub(before);
        } else if let Err(miss) = outcome {
            // Before everything is counted that fails for the same reason.
            anyhow::bail!("it does not work: {miss:?}");
        }
    }
    Ok((tally, processor))
}

fn check(reply: &[u8], expected: &str) -> Result<(), Miss> {
    if reply == expected.as_bytes() {
        return Ok(());
    }
    let reply = String::from_utf8_lossy(reply);
    Err(Miss::Wrong(format!("expected {expected:?}, got {reply:?}")))
}

fn processor_time(processes: &[u32]) -> Duration {
    processes.iter().map(|pid| process::processor_time(*pid)).sum()
}

impl Measured {
    fn of(contender: &Contender) -> Self {
        Self {
            name: contender.name,
            medians: Vec::new(),
            tally: Tally::new(PATIENCE),
            processor: (!contender.processes.is_empty()).then_some(Duration::ZERO),
        }
    }
}

fn table(measured: &[Measured]) -> String {
    let workerd = measured.iter().find(|measured| measured.name.label == WORKERD);
    let workerd = workerd.map_or(&[][..], |measured| &measured.medians);
    let mut table = Table::new(&[
        "",
        "p50 ms (95 %)",
        "p90 ms",
        "p99 ms",
        "of workerd (95 %)",
        "CPU ms/start",
        "starts",
        "failed",
    ]);
    for own in measured {
        let [p90, p99] = own
            .tally
            .latencies
            .quantiles([0.9, 0.99])
            .map(|quantile| quantile / 1000.0);
        let starts = own.tally.latencies.len();
        table.row(&[
            own.name.label.to_owned(),
            show(&Estimate::of(own.medians.clone()), 2),
            format!("{p90:.2}"),
            format!("{p99:.2}"),
            show(&ratios(&own.medians, workerd), 3),
            own.processor.map_or_else(
                || "–".to_owned(),
                |processor| format!("{:.1}", processor.as_secs_f64() * 1000.0 / starts as f64),
            ),
            starts.to_string(),
            own.tally.failures.total().to_string(),
        ]);
    }
    let failures = measured
        .iter()
        .filter(|measured| measured.tally.failures.total() > 0)
        .map(|measured| format!("\n{}: {}.\n", measured.name.label, measured.tally.failures));
    table.finish() + &failures.collect::<String>()
}

fn group(title: String, measured: &[Measured]) -> Group {
    let bar = |own: &Measured| {
        let estimate = Estimate::of(own.medians.clone());
        Bar {
            label: own.name.label.to_owned(),
            family: own.name.family,
            value: estimate.median,
            interval: estimate.ci95,
            text: format!("{:.2}", estimate.median),
        }
    };
    Group {
        title,
        scale: Scale::Log,
        bars: measured.iter().map(bar).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(label: &'static str, medians: &[f64], failed: usize) -> Measured {
        let mut tally = Tally::new(PATIENCE);
        for index in 0..10 {
            tally.add(if index < failed {
                Err(Miss::Missing)
            } else {
                Ok(Duration::from_millis(1))
            });
        }
        Measured {
            name: Name {
                label,
                family: Family::Nex,
            },
            medians: medians.to_vec(),
            tally,
            processor: Some(Duration::from_millis(20)),
        }
    }

    #[test]
    fn failed_starts_are_told_and_count_as_the_longest_wait() {
        let text = table(&[measured("nex", &[1.0], 1), measured(WORKERD, &[8.0], 0)]);
        let row = "| nex | 1.00 | 1.00 | 10000.00 | 0.125 | 2.0 | 10 | 1 |";
        // Histograms are right to 0.1 %.
        let text = text.replace("10002.43", "10000.00").replace("10007.61", "10000.00");
        assert!(text.contains(row), "{text}");
        assert!(
            text.contains("\nnex: 0 errors, 0 wrong replies, 1 without reply"),
            "{text}"
        );
    }

    #[test]
    fn only_the_right_reply_counts() {
        assert_eq!(check(b"f-1 x", "f-1 x"), Ok(()));
        assert!(matches!(check(b"f-2 x", "f-1 x"), Err(Miss::Wrong(_))));
    }
}
