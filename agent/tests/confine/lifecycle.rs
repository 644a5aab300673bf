//! How confined agents start and end, and that nothing of them stays.

use std::os::unix::process::ExitStatusExt;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncWriteExt;

use crate::attempts::{ALL, Outcome, Prisoner, command, gone, is_root, within};
use crate::escape_probe::escape_probe;

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).unwrap();
}

#[tokio::test]
async fn the_launcher_ends_as_the_agent_does() {
    let prisoner = Prisoner::start(ALL).await;
    assert_eq!(prisoner.end().await.code(), Some(0));

    for fatal in [Signal::KILL, Signal::SEGV, Signal::ABORT] {
        let mut prisoner = Prisoner::start(ALL).await;
        let (_, agent) = prisoner.family();
        signal(agent, fatal);
        let status = within(prisoner.child.wait()).await.unwrap();
        assert_eq!(status.signal(), Some(fatal.as_raw()));
    }

    // A node that talks nonsense is left with the code for that.
    let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let child = command(ALL)
        .stdin(std::os::fd::OwnedFd::from(theirs))
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut ours, &[0xAB; 64]).unwrap();
    let output = within(child.wait_with_output()).await.unwrap();
    assert_eq!(
        output.status.code(),
        Some(76),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test]
async fn signals_to_the_process_group_are_the_nodes_to_act_on() {
    let mut prisoner = Prisoner::start(ALL).await;
    let group = Pid::from_raw(i32::try_from(prisoner.child.id().unwrap()).unwrap()).unwrap();
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        rustix::process::kill_process_group(group, signal).unwrap();
    }
    assert!(!prisoner.show("show_file /proc/self/status").await.is_empty());
    assert_eq!(prisoner.end().await.code(), Some(0));
}

#[tokio::test]
async fn with_the_launcher_all_are_killed() {
    let mut prisoner = Prisoner::start(ALL).await;
    let (init, agent) = prisoner.family();
    prisoner.child.start_kill().unwrap();
    prisoner.child.wait().await.unwrap();
    gone(agent).await;
    gone(init).await;
}

#[tokio::test]
async fn a_launcher_that_is_killed_while_it_starts_leaves_nobody() {
    let mut inits = Vec::new();
    for delay in 0..40 {
        let mut child = command(ALL)
            .stdin(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        tokio::time::sleep(std::time::Duration::from_micros(delay * 250)).await;
        let launcher = child.id().unwrap();
        let children = std::fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children"));
        inits.extend(children.unwrap_or_default().trim().parse::<u32>());
        _ = child.start_kill();
        child.wait().await.unwrap();
    }
    assert!(!inits.is_empty(), "none was killed when it had a child");
    for init in inits {
        gone(init).await;
    }
}

#[tokio::test]
async fn a_hundred_agents_leave_no_process_no_mount_and_no_file() {
    let files = |folder: &str| {
        let entries = std::fs::read_dir(folder).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name())
            .collect::<std::collections::BTreeSet<_>>()
    };
    let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let folder = escape_probe().parent().unwrap().display().to_string();
    let (mounts_before, files_before) = (mounts(), files(&folder));
    let mut pids = Vec::new();
    for _ in 0..100 {
        let prisoner = Prisoner::start(ALL).await;
        let (init, agent) = prisoner.family();
        pids.extend([init, agent]);
        assert_eq!(prisoner.end().await.code(), Some(0));
    }
    // The launcher has waited for them.
    for pid in pids {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        assert_ne!(name.trim(), "escape_probe", "process {pid} stays");
    }
    assert_eq!(mounts(), mounts_before);
    assert_eq!(files(&folder), files_before);
}

#[tokio::test]
async fn an_ordinary_user_can_confine_as_well() {
    if !is_root() {
        // Then all other tests have shown it.
        return;
    }
    // It may not reach where this was built.
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("escape_probe");
    std::fs::copy(escape_probe(), &program).unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let ordinary = |layers: &str| {
        let mut command = tokio::process::Command::new(&program);
        command
            .env_clear()
            .uid(54_321)
            .gid(54_321)
            .arg(format!("--confine={layers}"));
        command
    };
    let mut prisoner = Prisoner::start_command(ordinary(ALL)).await;
    let (_, agent) = prisoner.family();
    let status = std::fs::read_to_string(format!("/proc/{agent}/status")).unwrap();
    assert!(status.contains("Uid:\t54321\t54321\t54321\t54321\n"), "{status}");
    let inside = prisoner.show("show_file /proc/self/status").await;
    assert!(inside.contains("Uid:\t1000\t1000\t1000\t1000\n"), "{inside}");
    assert_eq!(prisoner.end().await.code(), Some(0));

    // Its PID 1 is the same user, and yet not to be looked into.
    let outcome = Prisoner::start_command(ordinary("namespaces"))
        .await
        .attempt("list_processes")
        .await;
    assert!(matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
}

#[tokio::test]
async fn without_namespaces_root_still_becomes_nobody() {
    if !is_root() {
        return;
    }
    let mut prisoner = Prisoner::start("seccomp").await;
    let status = prisoner.show("show_file /proc/self/status").await;
    assert!(status.contains("Uid:\t65534\t65534\t65534\t65534\n"), "{status}");
    assert!(status.contains("CapEff:\t0000000000000000\n"), "{status}");
    assert!(status.contains("CapBnd:\t0000000000000000\n"), "{status}");
    assert!(status.contains("Groups:\t \n"), "{status}");
}

#[tokio::test]
async fn the_link_ends_with_the_agent_and_not_with_its_launcher() {
    // Nobody else holds the agent's end: what is stopped does not keep it open.
    let prisoner = Prisoner::start(ALL).await;
    let launcher = prisoner.child.id().unwrap();
    let (_, agent) = prisoner.family();
    signal(launcher, Signal::STOP);
    signal(agent, Signal::KILL);
    let mut prisoner = prisoner;
    let end = within(prisoner.link.reader.next()).await;
    assert!(!matches!(end, Ok(Some(_))), "{end:?}");
    signal(launcher, Signal::CONT);
    within(prisoner.child.wait()).await.unwrap();
}

#[tokio::test]
async fn an_unconfined_agent_is_the_process_that_was_started() {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let child = command("").stdin(std::os::fd::OwnedFd::from(theirs)).spawn().unwrap();
    ours.set_nonblocking(true).unwrap();
    let mut stream = tokio::net::UnixStream::from_std(ours).unwrap();
    stream.shutdown().await.unwrap();
    let output = within(child.wait_with_output()).await.unwrap();
    assert_eq!(output.status.code(), Some(0));
}
