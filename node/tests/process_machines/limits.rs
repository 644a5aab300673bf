//! What a machine may take: who takes more is stopped, callers are answered, and the functions come back.

use nex_node::agents::AgentEvent;
use nex_node::machines::ProcessLimits;
use nex_runtime::invocation::ErrorKind;

use crate::binary::agent_bin;
use crate::escape_probe::escape_probe;
use crate::lab::{Lab, answered, call, start, until, within};

const MEMORY: u64 = 192 << 20;

/// The first machine of a lab goes, and the next one serves.
async fn replaced(lab: &Lab, first: &str) {
    until("another machine serves", || {
        lab.serving().filter(|agent| agent.id != first)
    })
    .await;
}

#[tokio::test]
async fn code_that_has_broken_out_and_takes_too_much_memory_is_killed() {
    let limits = ProcessLimits {
        memory_bytes: Some(MEMORY),
        ..ProcessLimits::default()
    };
    let lab = Lab::of(escape_probe(), limits).await;
    assert!(lab.has("memory_"), "{:?}", lab.in_force);
    let mut events = lab.pool.subscribe();
    let neighbour = lab.load("neighbour", "").await;
    let thief = lab.load("thief", "").await;
    let first = lab.serving().unwrap().id;
    let waiting = start(&neighbour, "hang");
    // Whether it is answered before it is killed is a matter of chance.
    let taken = start(&thief, "allocate 1073741824");

    let error = within(waiting).await.unwrap().unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotReady, "{error}");
    within(taken).await.expect("its own caller is answered as well").ok();
    let code = within(async {
        loop {
            if let AgentEvent::Stopped { id, code, .. } = events.recv().await.unwrap()
                && id == first
            {
                break code;
            }
        }
    });
    assert_eq!(code.await, 128 + 9, "killed");
    for function in [&neighbour, &thief] {
        let status = answered(function, "show_file /proc/self/status").await;
        assert!(status.contains("succeeded"), "{status}");
    }
    replaced(&lab, &first).await;
    within(lab.pool.shutdown()).await;
}

/// Each keeps within its own limits; together they do not.
const HOARDER: &str = "let kept; export default (msg) => { kept ??= new Uint8Array(60 << 20).fill(1); return 'kept'; }";

#[tokio::test]
async fn functions_that_take_too_much_together_are_moved_and_serve_on() {
    let limits = ProcessLimits {
        memory_bytes: Some(MEMORY),
        ..ProcessLimits::default()
    };
    let lab = Lab::of(agent_bin(), limits).await;
    let echo = lab.load("echo", "(subject, payload) => payload").await;
    let mut hoarders = Vec::new();
    for number in 0..4 {
        hoarders.push(lab.load(&format!("hoarder-{number}"), HOARDER).await);
    }
    assert_eq!(call(&echo, "one").await.unwrap(), "one");
    let first = lab.serving().unwrap().id;
    let calls: Vec<_> = hoarders.iter().map(|hoarder| start(hoarder, "")).collect();
    for call in calls {
        // Each has an answer, whichever.
        match within(call).await.unwrap() {
            Ok(reply) => assert_eq!(reply.body, "kept"),
            Err(error) => assert_eq!(error.kind, ErrorKind::NotReady, "{error}"),
        }
    }
    replaced(&lab, &first).await;
    assert_eq!(answered(&echo, "two").await, "two");
    within(lab.pool.shutdown()).await;
}

#[tokio::test]
async fn a_machine_starts_no_more_threads_than_it_may() {
    let limits = ProcessLimits {
        pids: Some(100),
        ..ProcessLimits::default()
    };
    let lab = Lab::of(escape_probe(), limits).await;
    // Where no control group can count them, the kernel counts those of the agent's user namespace.
    let (few, many) = if lab.has("pids_cgroup") {
        ("threads 40", "threads 150")
    } else {
        ("threads 2000", "threads 9000")
    };
    let function = lab.load("threads", "").await;
    let first = lab.serving().unwrap().id;
    let reply = call(&function, few).await.unwrap();
    assert!(reply.contains("succeeded"), "{reply}");
    let reply = call(&function, many).await.unwrap();
    assert!(reply.contains("refused") && reply.contains("os error 11"), "{reply}");
    // Which harms nobody.
    let reply = call(&function, few).await.unwrap();
    assert!(reply.contains("succeeded"), "{reply}");
    assert_eq!(lab.serving().unwrap().id, first);
    within(lab.pool.shutdown()).await;
}

#[tokio::test]
async fn functions_for_whose_threads_there_is_no_room_wait_or_are_refused_and_others_serve_on() {
    let limits = ProcessLimits {
        pids: Some(64),
        ..ProcessLimits::default()
    };
    let lab = Lab::of(agent_bin(), limits).await;
    if !lab.has("pids_cgroup") {
        eprintln!("no control group counts threads on this host, so that this test has nothing to show");
        return;
    }
    let echo = lab.load("echo", "(subject, payload) => payload").await;
    let mut loaded = Vec::new();
    let mut refused = Vec::new();
    for number in 0..80 {
        match lab
            .try_load(&format!("more-{number}"), "(subject, payload) => payload")
            .await
        {
            Ok(function) => loaded.push(function),
            Err(error) => refused.push(error.to_string()),
        }
    }
    assert!(!refused.is_empty(), "64 threads for 80 functions");
    for error in refused {
        assert!(error.contains("this machine may start no more threads"), "{error}");
    }
    assert_eq!(call(&echo, "still").await.unwrap(), "still");
    within(lab.pool.shutdown()).await;
}

#[tokio::test]
async fn a_fork_bomb_ends_its_machine_and_no_other() {
    let lab = Lab::of(escape_probe(), ProcessLimits::default()).await;
    assert!(lab.has("seccomp"), "{:?}", lab.in_force);
    let neighbour = lab.load("neighbour", "").await;
    let bomb = lab.load("bomb", "").await;
    let first = lab.serving().unwrap().id;
    let waiting = start(&neighbour, "hang");
    let error = call(&bomb, "fork_bomb").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotReady, "{error}");
    assert_eq!(within(waiting).await.unwrap().unwrap_err().kind, ErrorKind::NotReady);
    let status = answered(&neighbour, "show_file /proc/self/status").await;
    assert!(status.contains("succeeded"), "{status}");
    assert_ne!(lab.serving().unwrap().id, first);
    within(lab.pool.shutdown()).await;
}

#[tokio::test]
async fn a_machine_gets_no_more_processor_time_than_it_may() {
    let limits = ProcessLimits {
        cpus: Some(0.2),
        ..ProcessLimits::default()
    };
    let lab = Lab::of(agent_bin(), limits).await;
    if !lab.has("cpu_cgroup") {
        eprintln!("no control group can limit processor time on this host, so that this test has nothing to show");
        return;
    }
    let spin = "export default () => { const end = Date.now() + 2000; while (Date.now() < end); return 'done'; }";
    let spin = lab.load("spin", spin).await;
    let before = lab.serving().unwrap().machine.cpu_time;
    let began = std::time::Instant::now();
    assert_eq!(call(&spin, "").await.unwrap(), "done");
    let used = lab.serving().unwrap().machine.cpu_time - before;
    // A fifth, and what is left over at the limits of its periods.
    let allowed = began.elapsed().mul_f64(0.3);
    assert!(used < allowed, "{used:?} of {:?}", began.elapsed());
    within(lab.pool.shutdown()).await;
}

#[tokio::test]
async fn a_machine_can_fill_no_disk() {
    let lab = Lab::of(escape_probe(), ProcessLimits::default()).await;
    let function = lab.load("filler", "").await;
    let first = lab.serving().unwrap().id;
    let reply = call(&function, "fill_disk 4194304").await.unwrap();
    assert!(reply.contains("refused"), "{reply}");
    assert_eq!(lab.serving().unwrap().id, first, "it was refused, and not ended");
    within(lab.pool.shutdown()).await;
}

#[tokio::test]
async fn the_kernel_ends_machines_before_the_node() {
    let lab = Lab::of(escape_probe(), ProcessLimits::default()).await;
    let score = |process: &str| {
        let score = std::fs::read_to_string(format!("/proc/{process}/oom_score_adj")).unwrap();
        score.trim().parse::<i32>().unwrap()
    };
    let machine = lab.pool.agents().pop().unwrap().pid;
    assert!(score(&machine.to_string()) > score("self"));
    within(lab.pool.shutdown()).await;
}
