//! Machines from their start to their end.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nex_agent::link::{AgentToNode, NodeToAgent};
use nex_node::machines::Port;

use crate::escape_probe::within;
use crate::lab::{Inmate, Lab};

/// What a clock may be off.
const TOLERANCE_MS: i128 = 1_000;

/// How long a paused machine stands still, which its clock does too.
const PAUSE: Duration = Duration::from_secs(3);

#[tokio::test]
async fn a_paused_machine_stands_still_and_is_told_the_time_afterwards() {
    let lab = Lab::new().await;
    let mut inmate = lab.boot("one").await;
    assert_eq!(inmate.ask("() => 'awake'").await, "awake");
    within(inmate.machine.pause()).await.unwrap();
    inmate.link.send(NodeToAgent::Ping { nonce: 1 });
    let answer = tokio::time::timeout(PAUSE, inmate.link.next()).await;
    assert!(answer.is_err(), "a paused machine answers: {answer:?}");
    within(inmate.machine.resume()).await.unwrap();
    assert!(matches!(within(inmate.link.next()).await, AgentToNode::Pong { .. }));

    let mut off = i128::MAX;
    let start = Instant::now();
    while off.abs() > TOLERANCE_MS {
        // Less than the interval at which guests are told the time anyway.
        assert!(start.elapsed() < Duration::from_secs(8), "the clock is {off} ms off");
        let time: i128 = inmate.ask("() => String(Date.now())").await.parse().unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        off = time - i128::try_from(now.as_millis()).unwrap();
    }
}

#[tokio::test]
async fn a_machine_ends_with_its_agent() {
    let lab = Lab::new().await;
    let inmate = lab.boot("one").await;
    let Inmate { machine, link, .. } = inmate;
    link.outbox.close();
    drop(link);
    let status = within(machine.wait()).await;
    assert_eq!(status.code(), Some(0), "the agent ended in good order: {status}");
    assert_eq!(lab.processes(), [0_u32; 0]);
}

/// Copies that are started and ended, each in another way than the one before.
const ROUNDS: usize = 20;

#[tokio::test]
async fn machines_that_come_and_go_leave_nothing_behind() {
    let lab = Lab::new().await;
    let machines = lab.source();
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let start = Instant::now();
        let machine = machines.start(&format!("agent-{round}")).await.unwrap();
        match round % 4 {
            // Never connected.
            0 => drop(machine),
            1 => {
                within(machine.connect(Port::Link)).await.unwrap();
                machine.kill();
                within(machine.wait()).await;
            }
            2 => _ = Inmate::of(machine).await.end().await,
            _ => {
                let inmate = Inmate::of(machine).await;
                within(inmate.machine.pause()).await.unwrap();
                drop(inmate);
            }
        }
        times.push(start.elapsed());
    }
    let start = Instant::now();
    while !lab.processes().is_empty() {
        assert!(start.elapsed() < Duration::from_secs(10), "{:?} stay", lab.processes());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(lab.left_behind().is_empty(), "{:?}", lab.left_behind());
    times.sort_unstable();
    eprintln!(
        "{ROUNDS} rounds: p50 {:?}, most {:?}",
        times[ROUNDS / 2],
        times[ROUNDS - 1]
    );
}
