//! What code finds that has broken out of V8, inside a virtual machine: an agent that makes system calls stands for it.

use std::os::unix::process::ExitStatusExt;

use nex_node::machines::QemuConfig;

use crate::escape_probe::{Outcome, assert_has_no_network, assert_has_no_rights, status_field};
use crate::lab::{Inmate, Lab};

/// All of these succeed in a process that nothing confines, see `agent/tests/confine/escape.rs`.
const ATTEMPTS: &[&str] = &[
    "read_file /etc/passwd",
    "read_file /proc/1/environ",
    "read_file /dev/vda",
    "read_file /dev/vport0p1",
    "read_file /dev/mem",
    "list_root",
    "list_processes",
    "write_anywhere",
    "ptrace",
    "mount",
    "raw_socket",
    "packet_socket",
    "inet_socket",
    "netlink_socket",
    "tcp_connect 10.0.2.2:80",
    "unix_connect /run/socket",
    "io_uring",
    "bpf",
    "userfaultfd",
    "perf_event_open",
    "keyctl",
    "memfd",
    "shared_memory",
    "fork",
    "fork_bomb",
    "clone_without_thread",
    "run_program",
    "kill 1",
    "unshare",
    "setuid",
    "capabilities",
    "chroot",
    "priority",
    "raise_limit",
    "open_descriptors",
];

#[tokio::test]
async fn attempts_to_break_out_fail() {
    let lab = Lab::of_attackers(|_| {}).await;
    let machines = lab.source();
    let mut inmate = Inmate::of(machines.start("first").await.unwrap()).await;
    let mut deadly = Vec::new();
    for attempt in ATTEMPTS {
        match inmate.attempt(attempt).await {
            Outcome::Refused(_) => {}
            Outcome::Succeeded(detail) => panic!("{attempt} succeeds: {detail}"),
            Outcome::Died(status) => {
                assert_eq!(status.signal(), Some(libc::SIGSYS), "{attempt}: {status}");
                deadly.push(*attempt);
                inmate = Inmate::of(machines.start(attempt).await.unwrap()).await;
            }
        }
    }
    for attempt in ["ptrace", "mount", "raw_socket", "io_uring", "bpf", "fork_bomb"] {
        assert!(deadly.contains(&attempt), "{attempt} should end the agent: {deadly:?}");
    }
}

#[tokio::test]
async fn a_machine_has_nothing_but_what_it_was_given() {
    let lab = Lab::of_attackers(|config: &mut QemuConfig| {
        config.agent_env = vec![("GIVEN".to_owned(), "this".to_owned())];
    })
    .await;
    let machines = lab.source();
    let mut inmate = Inmate::of(machines.start("one").await.unwrap()).await;
    assert_eq!(inmate.show("show_file /proc/self/environ").await, "GIVEN=this\0");

    let interfaces = inmate.show("show_file /proc/self/net/dev").await;
    let routes = inmate.show("show_file /proc/self/net/route").await;
    assert_has_no_network(&interfaces, &routes);
    let status = inmate.show("show_file /proc/self/status").await;
    assert_has_no_rights(&status);
    assert_eq!(status_field(&status, "Groups"), "");

    let mounts = inmate.show("show_file /proc/self/mounts").await;
    let root = mounts.lines().rfind(|mount| mount.split(' ').nth(1) == Some("/"));
    let options = root.and_then(|mount| mount.split(' ').nth(3)).unwrap_or_default();
    assert!(options.split(',').any(|option| option == "ro"), "{mounts}");

    let mut twin = Inmate::of(machines.start("twin").await.unwrap()).await;
    let noise = inmate.show("show_file /dev/urandom").await;
    assert!(
        noise != twin.show("show_file /dev/urandom").await,
        "two copies have the same random numbers"
    );
}

#[tokio::test]
async fn memory_that_the_machine_does_not_have_ends_the_agent_and_nothing_else() {
    let lab = Lab::of_attackers(|config: &mut QemuConfig| config.memory_mib = 256).await;
    let mut inmate = lab.boot("one").await;
    let mut attempts = 0;
    let status = loop {
        match inmate.attempt(&format!("allocate {}", 32 << 20)).await {
            Outcome::Succeeded(_) => attempts += 1,
            Outcome::Died(status) => break status,
            Outcome::Refused(why) => panic!("{why}"),
        }
        assert!(attempts <= 8, "256 MiB hold {attempts} times 32 MiB");
    };
    assert_eq!(
        status.signal(),
        Some(libc::SIGKILL),
        "by the guest's own kernel: {status}"
    );
    assert!(attempts > 2, "it had room for {attempts} times 32 MiB only");
}
