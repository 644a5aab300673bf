//! Isolates come and go and leave nothing behind: no memory, no threads, no file descriptors. The figures are those of the
//! whole process, which is why this is a test program of its own and its tests take turns.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use std::collections::VecDeque;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nex_runtime::engine::Limits;
use nex_runtime::harness::{Harness, HarnessFunction};
use nex_runtime::v8::{V8Config, V8Engine};
use tokio::sync::{Mutex, MutexGuard};

const MIB: u64 = 1 << 20;

/// How many bursts there are.
const ROUNDS: usize = 3;

async fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::const_new(());
    TURN.lock().await
}

#[derive(Debug, Clone, Copy)]
struct Process {
    resident: u64,
    threads: usize,
    descriptors: usize,
}

fn process() -> Process {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let resident = resident.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024;
    Process {
        resident,
        threads: fs::read_dir("/proc/self/task").unwrap().count(),
        descriptors: fs::read_dir("/proc/self/fd").unwrap().count(),
    }
}

/// Waits until the process is as it should be; how long that may take is no part of what is tested.
async fn wait_until(what: &str, condition: impl Fn(Process) -> bool) -> Process {
    let start = Instant::now();
    loop {
        let now = process();
        if condition(now) {
            return now;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{what}: still {now:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn harness(hibernate_after: Duration) -> Harness {
    let config = V8Config {
        max_instances: 2_000,
        ..V8Config::default()
    };
    let limits = Limits {
        hibernate_after,
        instances: 1,
        ..Limits::default()
    };
    Harness::with_engine(Arc::new(V8Engine::new(config).unwrap())).limits(limits)
}

async fn load_and_call(harness: &Harness) -> HarnessFunction {
    // Garbage, a buffer, a WebAssembly memory, a timer and compiled code: of everything that is to go.
    let source = "const kept = []; export default async (msg) => { \
                  for (let i = 0; i < 100; i++) kept.push({ i, text: `${i}` }); kept.push(new Uint8Array(65536).fill(1)); \
                  kept.push(new WebAssembly.Memory({ initial: 1 })); \
                  await new Promise((done) => setTimeout(done, 0)); return msg.data }";
    let function = harness.load(source).await.unwrap();
    assert_eq!(function.call("s", "still there?").await.unwrap().body, "still there?");
    function
}

#[tokio::test]
async fn thousands_of_isolates_come_and_go_and_leave_nothing_behind() {
    let _turn = turn().await;
    let harness = harness(Duration::from_secs(3600));
    let mut alive = VecDeque::new();
    let mut rounds = Vec::new();
    for _ in 0..9 {
        let mut largest = 0;
        for number in 0..250 {
            alive.push_back(load_and_call(&harness).await);
            if alive.len() > 4 {
                alive.pop_front();
            }
            if number % 10 == 0 {
                largest = largest.max(process().resident);
            }
        }
        rounds.push((largest, process()));
    }
    // The first round warms up.
    let (first, before) = rounds[1];
    let (last, after) = rounds[8];
    assert!(last <= first + 10 * MIB, "{rounds:?}");
    // Those that are on their way out come and go.
    assert!(after.threads.abs_diff(before.threads) <= 8, "{rounds:?}");
    assert!(after.descriptors.abs_diff(before.descriptors) <= 2, "{rounds:?}");
}

/// 200 functions awake at once, and then not, a few times: memory is back to within 15 % of where it was.
async fn burst(hibernate_after: Duration, end: impl Fn(&mut Vec<HarnessFunction>)) -> Vec<HarnessFunction> {
    let harness = harness(hibernate_after);
    // What is made once and stays: compiled code, V8's threads, and so on.
    let mut functions = Vec::new();
    for _ in 0..20 {
        functions.push(load_and_call(&harness).await);
    }
    end(&mut functions);
    let idle = wait_until("warming up", |now| now.threads <= 24).await;
    let before = wait_until("warming up", |now| now.resident <= idle.resident + MIB).await;
    let most = before.resident + before.resident * 15 / 100;
    // More than once: what each burst leaves adds up.
    for _ in 0..ROUNDS {
        functions.clear();
        for _ in 0..200 {
            functions.push(load_and_call(&harness).await);
        }
        end(&mut functions);
        wait_until("memory is not given back", |now| {
            now.threads <= before.threads + 4 && now.resident <= most
        })
        .await;
    }
    functions
}

#[tokio::test]
async fn a_burst_of_functions_gives_its_memory_back() {
    let _turn = turn().await;
    burst(Duration::from_secs(3600), |functions| {
        if functions.len() == 200 {
            assert!(process().threads >= 200, "they should all be awake: {:?}", process());
        }
        functions.clear();
    })
    .await;
}

#[tokio::test]
async fn a_burst_that_hibernates_gives_its_memory_back_and_wakes_again() {
    let _turn = turn().await;
    for function in burst(Duration::from_millis(300), |_| {}).await {
        assert_eq!(function.call("s", "awake again?").await.unwrap().body, "awake again?");
    }
}

#[tokio::test]
async fn an_engine_that_ends_while_it_makes_isolates_ends_quietly() {
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    let _turn = turn().await;
    // V8's own threads stay.
    let harness = harness(Duration::from_secs(3600));
    load_and_call(&harness).await;
    drop(harness);
    let before = wait_until("warming up", |now| now.threads <= 24).await;
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        report(panic);
    }));
    for _ in 0..20 {
        drop(V8Engine::new(V8Config::default()).unwrap());
    }
    wait_until("threads are left", |now| now.threads <= before.threads).await;
    assert_eq!(PANICS.load(Ordering::Relaxed), 0);
}
