//! `density`: memory of a function that has nothing to do, awake and hibernating, as the slope of the memory of what runs
//! functions over their number; and calls to every one of them, to see that they are there.

use std::fmt::Display;
use std::process::Stdio;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nex_runtime::v8::V8Config;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio::time::sleep;

use super::super::failure::Failure;
use super::context::Context;
use super::in_process::InProcess;
use super::progress::Progress;
use super::report::{Benchmark, MemoryPoint, Variant};
use super::stage::{Stage, Treatment};
use crate::bench::load::{Failures, Tally};
use crate::bench::{Payload, process, stats};

/// The hidden command that measures in a process of its own.
pub(super) const PROBE: &str = "density-probe";
/// Points of a slope beside that without functions.
const STEPS: u32 = 4;
/// Functions that hibernate for each that is awake: they are so much smaller that it takes more to see them.
const HIBERNATED_PER_AWAKE: u32 = 4;
/// Idle time after which functions hibernate that are to.
const HIBERNATE_AFTER: Duration = Duration::from_millis(100);
/// The same in agents, where there is more to do with each.
const HIBERNATE_AFTER_IN_AGENTS: Duration = Duration::from_millis(500);
/// Idle time after which functions hibernate that are not to.
const NEVER: Duration = Duration::from_secs(24 * 60 * 60);
/// The first calls to functions are paced, and their latency is told; the others only see that the functions are there.
const MEASURED_CALLS: usize = 50;
const PAUSE: Duration = Duration::from_millis(25);
/// Memory has come to rest when it has changed by less than a part in so many for some time; it is waited for
/// [`PATIENCE`].
const REST_PART: u64 = 500;
const REST: Duration = Duration::from_millis(400);
/// The engine collects the garbage of functions that have been idle for two seconds, and gives back what they do not need.
const REST_AWAKE: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(15);
/// What an awake function may need at most, as a guess that decides whether there is room for all.
const ROOM_PER_FUNCTION: u64 = 3 << 20;

const GIB: f64 = (1_u64 << 30) as f64;

/// What to measure.
#[derive(Debug, Clone, Copy)]
pub(super) struct Density {
    /// Awake functions.
    pub(super) functions: u32,
}

/// Whether the functions are awake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum State {
    /// They are.
    Awake,
    /// They hibernate.
    Hibernated,
}

/// What one repeat gave; a process of its own writes it as JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Probe {
    /// `Err`: why memory cannot be measured.
    memory: Result<Vec<MemoryPoint>, String>,
    /// Functions awake before they were called, where it can be known.
    awake: Option<usize>,
    /// Functions called, each once.
    called: u64,
    /// What became of these calls.
    failures: Failures,
    /// Nanoseconds of the first of them.
    latencies: Vec<u64>,
}

impl Density {
    /// Steps of the progress bar.
    pub(super) fn steps(&self, context: &Context) -> u64 {
        2 * u64::from(context.repeats)
    }

    /// Measures the engine, in a process of its own for each repeat: one that has had functions before is no measure.
    pub(super) async fn in_process(&self, context: &Context) -> Result<Benchmark, Failure> {
        self.check_room()?;
        let mut variants = Vec::new();
        for state in [State::Awake, State::Hibernated] {
            let mut probes = Vec::new();
            for repeat in 1..=context.repeats {
                context
                    .progress
                    .doing(format!("density, {}: repeat {repeat}", state.name()));
                probes.push(self.probe_elsewhere(context, state).await?);
                context.progress.step();
            }
            variants.push(Self::variant(state, &probes));
        }
        Ok(self.benchmark(
            "Each repeat is a process of its own with one engine, and the memory is that of the process",
            variants,
        ))
    }

    /// Measures functions in agents, which hibernate of themselves after `limit`, if that is known. Each repeat adds
    /// functions to those of the one before.
    pub(super) async fn in_agents(
        &self,
        context: &Context,
        stage: &impl Stage,
        limit: Option<Duration>,
    ) -> Result<Benchmark, Failure> {
        let mut variants = Vec::new();
        for state in [State::Awake, State::Hibernated] {
            let mut probes = Vec::new();
            let mut functions = Vec::new();
            for repeat in 1..=context.repeats {
                context
                    .progress
                    .doing(format!("density, {}: repeat {repeat}", state.name()));
                // Those to be awake have the usual limit, because no longer one may be allowed.
                let treatment = Treatment {
                    hibernate_after: (state == State::Hibernated).then_some(HIBERNATE_AFTER_IN_AGENTS),
                };
                let start = Instant::now();
                if state == State::Awake {
                    call_all(context, stage, &functions).await?;
                }
                let count = self.count(state);
                let mut probe = probe(context, stage, state, treatment, count, &mut functions).await?;
                let limit = limit.filter(|limit| start.elapsed() > *limit);
                if let Some(limit) = limit.filter(|_| state == State::Awake) {
                    probe.memory = Err(format!(
                        "functions hibernate after {limit:?} there, and it took longer to deploy them; \
                         --functions takes fewer"
                    ));
                }
                probes.push(probe);
                context.progress.step();
            }
            stage.remove(functions).await?;
            variants.push(Self::variant(state, &probes));
        }
        Ok(self.benchmark(
            "Each repeat adds functions to those of the one before, and the memory is that of the agents' machines on \
             their host",
            variants,
        ))
    }

    fn count(&self, state: State) -> u32 {
        match state {
            State::Awake => self.functions,
            State::Hibernated => self.functions.saturating_mul(HIBERNATED_PER_AWAKE),
        }
    }

    fn check_room(&self) -> Result<(), Failure> {
        let needed = u64::from(self.functions) * ROOM_PER_FUNCTION;
        match process::available_bytes() {
            Some(available) if available < needed => Err(Failure::failed(format_args!(
                "{} awake functions may need {} MiB and {} MiB are available; --functions takes fewer",
                self.functions,
                needed >> 20,
                available >> 20
            ))),
            _ => Ok(()),
        }
    }

    /// One repeat in a process of its own.
    async fn probe_elsewhere(&self, context: &Context, state: State) -> Result<Probe, Failure> {
        let failed = |error: &dyn Display| Failure::failed(format_args!("cannot start a process to measure: {error}"));
        let program = std::env::current_exe().map_err(|error| failed(&error))?;
        let request = ProbeRequest {
            state,
            functions: self.count(state),
            payload: context.payload.clone(),
            timeout: context.timeout,
            own: context.own.clone(),
        };
        let mut child = Command::new(program)
            .args(["--namespace", &context.namespace, "bench", PROBE])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| failed(&error))?;
        if let Some(mut stdin) = child.stdin.take() {
            let request = serde_json::to_vec(&request).map_err(|error| failed(&error))?;
            // If it has ended already, its status says more than this would.
            _ = stdin.write_all(&request).await;
        }
        let output = child.wait_with_output().await.map_err(|error| failed(&error))?;
        if !output.status.success() {
            // It has said why on standard error, which is ours.
            return Err(Failure::failed(format_args!(
                "the process that measured density ended with {}",
                output.status
            )));
        }
        serde_json::from_slice(&output.stdout).map_err(|error| {
            Failure::failed(format_args!(
                "the process that measured density wrote no result: {error}"
            ))
        })
    }

    fn variant(state: State, probes: &[Probe]) -> Variant {
        let mut variant = Variant::new(state.name(), "");
        let mut slopes = Vec::new();
        for probe in probes {
            match &probe.memory {
                Ok(points) => {
                    let line: Vec<(f64, f64)> = points
                        .iter()
                        .map(|point| (f64::from(point.functions), point.pss_bytes as f64))
                        .collect();
                    slopes.push(stats::slope(&line));
                    variant.memory.push(points.clone());
                }
                Err(reason) => {
                    let note = format!("memory is not measurable from here: {reason}");
                    if !variant.notes.contains(&note) {
                        variant.notes.push(note);
                    }
                }
            }
            if let Some(awake) = probe.awake {
                let called = probe.called;
                let expected = if state == State::Awake { called } else { 0 };
                if awake as u64 != expected {
                    variant.notes.push(format!(
                        "{awake} of {called} functions were awake when they were to be called, instead of {expected}"
                    ));
                }
            }
        }
        if !slopes.is_empty() {
            let positive = |slope: f64| if slope > 0.0 { slope } else { f64::NAN };
            if slopes.iter().any(|&slope| slope <= 0.0) {
                variant.notes.push(
                    "in some repeats the memory of so few functions was too little to be told from other changes"
                        .to_owned(),
                );
            }
            variant.figure(
                "kib_per_function",
                "KiB/function",
                slopes.iter().map(|slope| slope / 1024.0).collect(),
            );
            variant.figure(
                "functions_per_gib",
                "functions/GiB",
                slopes.iter().map(|&slope| GIB / positive(slope)).collect(),
            );
        }
        let tallies: Vec<Tally> = probes.iter().map(Probe::tally).collect();
        variant.latencies(
            &tallies,
            &match state {
                State::Awake => [(0.5, "call_p50_us", "call p50 µs"), (0.9, "call_p90_us", "call p90 µs")],
                State::Hibernated => [(0.5, "wake_p50_us", "wake p50 µs"), (0.9, "wake_p90_us", "wake p90 µs")],
            },
        );
        // Not only those whose latency is told.
        variant.calls = probes.iter().map(|probe| probe.called).sum();
        variant
    }

    fn benchmark(&self, how: &str, variants: Vec<Variant>) -> Benchmark {
        Benchmark {
            benchmark: "density",
            title: "Density".to_owned(),
            definition: format!(
                "Memory per function is the slope of memory (PSS: what processes share counts in equal parts) over {STEPS} \
                 growing numbers of functions without calls. {how}. Functions per GiB is 1 GiB by that slope. Then each \
                 function is called once, and must give the right reply; latencies are those of the first {MEASURED_CALLS} \
                 calls, {PAUSE:?} apart."
            ),
            excluded: "what is there without functions: the program, V8, and the pool of blank isolates; \
                       for hibernating functions also what the first quarter of them leaves behind by having been awake"
                .to_owned(),
            variants,
        }
    }
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Awake => "awake",
            Self::Hibernated => "hibernated",
        }
    }
}

/// What a process of its own is to measure.
#[derive(Debug, Serialize, Deserialize)]
struct ProbeRequest {
    state: State,
    functions: u32,
    payload: Payload,
    timeout: Duration,
    own: Option<Bytes>,
}

/// Reads from standard input what to measure, and writes the result to standard output.
pub(super) async fn answer_probe(namespace: &str) -> Result<(), Failure> {
    let mut request = Vec::new();
    tokio::io::stdin()
        .read_to_end(&mut request)
        .await
        .map_err(Failure::usage)?;
    let request: ProbeRequest = serde_json::from_slice(&request).map_err(Failure::usage)?;
    super::super::output::json_line(&request.run(namespace).await?)
}

impl ProbeRequest {
    /// Measures in this process.
    async fn run(self, namespace: &str) -> Result<Probe, Failure> {
        let Self {
            state,
            functions,
            payload,
            timeout,
            own,
        } = self;
        let context = &Context {
            repeats: 1,
            warm_up: Duration::ZERO,
            timeout,
            payload,
            own,
            namespace: namespace.to_owned(),
            progress: Progress::none(),
        };
        let config = V8Config {
            // The functions and some that are about to go.
            max_instances: usize::try_from(functions).unwrap_or(usize::MAX).saturating_add(16),
            ..V8Config::default()
        };
        let stage = InProcess::new(config, &context.namespace)?;
        let hibernate_after = Some(match state {
            State::Awake => NEVER,
            State::Hibernated => HIBERNATE_AFTER,
        });
        let treatment = Treatment { hibernate_after };
        probe(context, &stage, state, treatment, functions, &mut Vec::new()).await
    }
}

impl Probe {
    fn tally(&self) -> Tally {
        let mut tally = Tally::new(Duration::MAX);
        for nanoseconds in &self.latencies {
            tally.add(Ok(Duration::from_nanos(*nanoseconds)));
        }
        tally.failures = self.failures.clone();
        tally
    }
}

/// Adds functions step by step, measures memory at each, and calls those that were added.
async fn probe<S: Stage>(
    context: &Context,
    stage: &S,
    state: State,
    treatment: Treatment,
    count: u32,
    functions: &mut Vec<S::Function>,
) -> Result<Probe, Failure> {
    let before = functions.len();
    let mut memory = Ok(Vec::new());
    for step in 0..=STEPS {
        let target =
            before + usize::try_from(u64::from(count) * u64::from(step) / u64::from(STEPS)).unwrap_or(usize::MAX);
        while functions.len() < target {
            let source = context.function(functions.len() as u64);
            functions.push(stage.deploy(source, treatment).await?);
        }
        if state == State::Hibernated {
            let after = treatment.hibernate_after.unwrap_or_default();
            stage.asleep(functions, after).await?;
            if step == 0 {
                // Without any that has been awake, memory is not yet what it comes back to.
                continue;
            }
        }
        if let Ok(points) = &mut memory {
            let rest = match state {
                State::Awake => REST_AWAKE,
                State::Hibernated => REST,
            };
            match memory_at_rest(stage, rest).await {
                Ok(pss_bytes) => points.push(MemoryPoint {
                    functions: u32::try_from(functions.len()).unwrap_or(u32::MAX),
                    pss_bytes,
                }),
                Err(reason) => memory = Err(reason),
            }
        }
    }

    let added = &functions[before..];
    let awake = stage.awake(added);
    let mut generator = context.generator(stage.target(added).await?);
    let mut tally = Tally::new(context.timeout);
    let mut latencies = Vec::new();
    for to in 0..added.len() {
        let measured = to < MEASURED_CALLS;
        if measured {
            // For the pool to be filled again.
            sleep(PAUSE).await;
        }
        let latency = tally.add(generator.call(to).await?);
        if measured {
            latencies.push(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
        }
    }
    Ok(Probe {
        memory,
        awake,
        called: added.len() as u64,
        failures: tally.failures,
        latencies,
    })
}

/// Calls each function once, so that none has been idle for long.
async fn call_all<S: Stage>(context: &Context, stage: &S, functions: &[S::Function]) -> Result<(), Failure> {
    let mut generator = context.generator(stage.target(functions).await?);
    for to in 0..functions.len() {
        // A failure shows where it counts.
        _ = generator.call(to).await?;
    }
    Ok(())
}

async fn memory_at_rest(stage: &impl Stage, rest: Duration) -> Result<u64, String> {
    let begun = Instant::now();
    let mut last = stage.memory().await?;
    let mut since = begun;
    while since.elapsed() < rest && begun.elapsed() < PATIENCE {
        sleep(LOOK).await;
        let memory = stage.memory().await?;
        if memory.abs_diff(last) >= memory / REST_PART {
            last = memory;
            since = Instant::now();
        }
    }
    Ok(last)
}
