//! Hundreds of machines, one after the other, of which nothing stays behind.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nex_agent::link::{AgentToNode, LinkReader};
use nex_node::machines::{MachineDriver, Port, ProcessConfig, ProcessDriver, ProcessLimits};
use rustix::process::{Pid, test_kill_process};

use crate::binary::agent_bin;
use crate::lab::{PATIENCE, control_groups_of, figures, is_alone, run_alone, until, within};

const ROUNDS: usize = 200;

#[test]
fn hundreds_of_machines_leave_nothing_behind() {
    // Built here, if it has to be.
    let agent = agent_bin();
    run_alone("rounds::many_rounds_in_a_process_of_their_own", |command| {
        command.env("NEX_AGENT_BIN", agent);
    });
}

/// What there is of this process, and what machines could leave on the host.
#[derive(Debug, PartialEq, Eq)]
struct Belongings {
    descriptors: usize,
    children: Vec<String>,
    groups: usize,
    files: BTreeSet<std::ffi::OsString>,
    mounts: String,
}

impl Belongings {
    fn now(files: &Path) -> Self {
        let tasks = fs::read_dir("/proc/self/task").unwrap();
        let children = tasks
            .flatten()
            .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
            .filter(|children| !children.is_empty());
        Self {
            descriptors: fs::read_dir("/proc/self/fd").unwrap().count(),
            children: children.collect(),
            groups: control_groups_of(std::process::id()).len(),
            files: fs::read_dir(files)
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect(),
            mounts: fs::read_to_string("/proc/self/mountinfo").unwrap(),
        }
    }
}

#[tokio::test]
async fn many_rounds_in_a_process_of_their_own() {
    if !is_alone() {
        return;
    }
    // All files of this process, and those of its machines if they had any, go here.
    let files = tempfile::tempdir().unwrap();
    let driver = ProcessDriver::new(ProcessConfig {
        limits: ProcessLimits {
            memory_bytes: Some(1 << 30),
            pids: Some(256),
            cpus: Some(2.0),
        },
        agent_env: vec![("TMPDIR".to_owned(), files.path().display().to_string())],
        start_timeout: PATIENCE,
        ..ProcessConfig::new(agent_bin())
    });
    let driver = driver.await.unwrap();
    let mut pids = Vec::new();
    // The first round makes what stays for good, such as the thread that starts processes.
    pids.push(round(&driver, 0).await.0);
    let before = Belongings::now(files.path());
    let mut times = Vec::new();
    for number in 1..=ROUNDS {
        let (pid, time) = round(&driver, number).await;
        pids.push(pid);
        times.push(time);
    }
    // The runtime takes note of closed descriptors in its own time.
    until("as before", || (Belongings::now(files.path()) == before).then_some(())).await;
    assert_eq!(before.groups, 0);
    assert_eq!(before.children, [""; 0]);
    for pid in pids {
        assert!(test_kill_process(pid).is_err(), "process {pid:?} is still there");
    }
    figures("boot, connect, and kill or stop a machine", times);
}

/// The life of one machine: every other one is killed, the others end by themselves; half of them have been connected.
async fn round(driver: &ProcessDriver, number: usize) -> (Pid, Duration) {
    let began = Instant::now();
    let machine = within(driver.boot(&format!("round-{number}"))).await.unwrap();
    let pid = Pid::from_raw(i32::try_from(machine.pid()).unwrap()).unwrap();
    let stream = within(machine.connect(Port::Link)).await.unwrap();
    let mut reader = LinkReader::<AgentToNode>::new(stream.reader);
    let hello = within(reader.next()).await.unwrap();
    assert!(matches!(hello, Some(AgentToNode::Hello(_))), "{hello:?}");
    let connected = number % 4 < 2;
    if !connected {
        drop((reader, stream.writer));
    }
    if number.is_multiple_of(2) {
        machine.kill();
        let status = within(machine.wait()).await;
        let ended_before = !connected && status.code() == Some(0);
        assert!(status.signal() == Some(9) || ended_before, "{status}");
    } else {
        // It ends with its link, or is killed for not ending.
        let status = within(machine.stop(if connected { Duration::ZERO } else { PATIENCE })).await;
        let expected = if connected {
            status.signal() == Some(9)
        } else {
            status.code() == Some(0)
        };
        assert!(expected, "{status}, connected: {connected}");
    }
    assert!(test_kill_process(pid).is_err(), "the machine is gone when that is said");
    assert_eq!(control_groups_of(std::process::id()), Vec::<PathBuf>::new());
    (pid, began.elapsed())
}
