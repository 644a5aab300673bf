//! What confined agents cannot do, and unconfined ones can.

use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;

use rustix::process::{Pid, Signal};

use crate::attempts::{ALL, Outcome, Prisoner, attempt, command, is_root};
use crate::escape_probe::{assert_has_no_network, assert_has_no_rights, status_field};

/// Attempts that need a target of this host.
struct Targets {
    _folder: tempfile::TempDir,
    file: String,
    socket: String,
    _listener: UnixListener,
    tcp: String,
    _tcp_listener: TcpListener,
    /// Read by another process, if it can.
    secret: Box<[u8; 8]>,
}

impl Targets {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        std::fs::write(&file, "of the host").unwrap();
        let socket = folder.path().join("socket");
        let tcp_listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Self {
            file: file.display().to_string(),
            _listener: UnixListener::bind(&socket).unwrap(),
            socket: socket.display().to_string(),
            tcp: tcp_listener.local_addr().unwrap().to_string(),
            _tcp_listener: tcp_listener,
            secret: Box::new(*b"a secret"),
            _folder: folder,
        }
    }

    fn aim(&self, probe: &str) -> String {
        let own = std::process::id();
        let target = match probe {
            "read_file" => self.file.clone(),
            "unix_connect" => self.socket.clone(),
            "tcp_connect" => self.tcp.clone(),
            "kill" => own.to_string(),
            "process_vm_readv" => format!("{own} {}", self.secret.as_ptr().addr()),
            "read_file_of_process" => return format!("read_file /proc/{own}/environ"),
            _ => return probe.to_owned(),
        };
        format!("{probe} {target}")
    }
}

/// What anybody can do whom nothing confines.
const BY_ANYBODY: &[&str] = &[
    "read_file",
    "read_file /etc/passwd",
    "list_root",
    "list_processes",
    "write_anywhere",
    "fill_disk 65536",
    "ptrace",
    "inet_socket",
    "netlink_socket",
    "unix_connect",
    "tcp_connect",
    "memfd",
    "shared_memory",
    "fork",
    "fork_bomb",
    "clone_without_thread",
    "run_program",
    "kill",
    "open_descriptors",
];

/// What only root can do.
const BY_ROOT: &[&str] = &[
    "read_file /etc/shadow",
    "read_file_of_process",
    "mount",
    "raw_socket",
    "packet_socket",
    "unshare",
    "setuid",
    "capabilities",
    "chroot",
    "priority",
    "process_vm_readv",
    "raise_limit",
];

/// What root can do if the kernel has it and the host allows it.
const IF_THE_KERNEL_HAS_IT: &[&str] = &["io_uring", "bpf", "userfaultfd", "perf_event_open", "keyctl"];

#[tokio::test(flavor = "multi_thread")]
async fn what_succeeds_unconfined_fails_confined() {
    let targets = Targets::new();
    for probe in BY_ANYBODY.iter().chain(BY_ROOT).chain(IF_THE_KERNEL_HAS_IT) {
        let aimed = targets.aim(probe);
        match attempt("", &aimed).await {
            Outcome::Succeeded(_) => {}
            other => {
                let excused = IF_THE_KERNEL_HAS_IT.contains(probe) || (BY_ROOT.contains(probe) && !is_root());
                assert!(excused, "{probe} should succeed unconfined: {other:?}");
            }
        }
        let confined = attempt(ALL, &aimed).await;
        match confined {
            Outcome::Refused(_) => {}
            Outcome::Died(status) => assert_eq!(status.signal(), Some(libc::SIGSYS), "{probe}"),
            Outcome::Succeeded(detail) => panic!("{probe} succeeds confined: {detail}"),
        }
    }
}

/// Layers alone, and what each of them stops that nothing else would.
const BY_LAYER: &[(&str, &[&str])] = &[
    (
        "namespaces",
        &[
            "read_file",
            "read_file /etc/passwd",
            "read_file /etc/shadow",
            "read_file_of_process",
            "list_root",
            "list_processes",
            "write_anywhere",
            "unix_connect",
            "tcp_connect",
            "kill",
            "process_vm_readv",
            "mount",
            "raw_socket",
            "packet_socket",
            "unshare",
            "setuid",
            "capabilities",
            "chroot",
            "priority",
        ],
    ),
    (
        "landlock",
        &[
            "read_file",
            "read_file /etc/passwd",
            "read_file /etc/shadow",
            "list_root",
            "write_anywhere",
            "tcp_connect",
            "kill",
            "process_vm_readv",
            "setuid",
        ],
    ),
    (
        "seccomp",
        &[
            "write_anywhere",
            "ptrace",
            "inet_socket",
            "netlink_socket",
            "unix_connect",
            "tcp_connect",
            "memfd",
            "shared_memory",
            "fork",
            "clone_without_thread",
            "run_program",
            "kill",
            "process_vm_readv",
            "io_uring",
            "bpf",
            "userfaultfd",
            "perf_event_open",
            "keyctl",
            "priority",
            "raise_limit",
        ],
    ),
    ("rlimits", &["open_descriptors", "raise_limit"]),
];

#[tokio::test(flavor = "multi_thread")]
async fn each_layer_alone_stops_what_it_is_for() {
    let targets = Targets::new();
    for (layer, probes) in BY_LAYER {
        for probe in *probes {
            let outcome = attempt(layer, &targets.aim(probe)).await;
            assert!(
                !matches!(outcome, Outcome::Succeeded(_)),
                "{probe} under {layer}: {outcome:?}"
            );
        }
    }
}

#[tokio::test]
async fn execution_of_a_program_ends_the_agent_which_tells_the_thread() {
    // Unconfined the agent is another program then, which ends in good order.
    match attempt("", "execve").await {
        Outcome::Died(status) => assert_eq!(status.code(), Some(0)),
        other => panic!("it is still there: {other:?}"),
    }

    let mut prisoner = Prisoner::start(ALL).await;
    let Outcome::Died(status) = prisoner.attempt("execve").await else {
        panic!("it is still there");
    };
    assert_eq!(status.signal(), Some(libc::SIGSYS));
    let (_, words) = prisoner.last_words().await;
    let crash = words.lines().last().and_then(nex_agent::crash::thread_in);
    assert!(crash.is_some(), "{words}");
    assert!(nex_agent::crash::is_crash(libc::SIGSYS));
}

#[tokio::test]
async fn inside_there_is_nothing_but_what_was_given() {
    let mut confined = command(ALL);
    confined.env("GIVEN", "this");
    let mut prisoner = Prisoner::start_command(confined).await;

    assert_eq!(prisoner.show("show_file /proc/self/environ").await, "GIVEN=this\0");

    let status = prisoner.show("show_file /proc/self/status").await;
    assert_eq!(status_field(&status, "Pid"), "2");
    assert_eq!(status_field(&status, "PPid"), "1");
    if is_root() {
        assert_eq!(status_field(&status, "Groups"), "");
    }
    assert_has_no_rights(&status);
    let interfaces = prisoner.show("show_file /proc/self/net/dev").await;
    let routes = prisoner.show("show_file /proc/self/net/route").await;
    assert_has_no_network(&interfaces, &routes);

    let mounts = prisoner.show("show_file /proc/self/mountinfo").await;
    let binary = crate::escape_probe::escape_probe().display().to_string();
    let devices = ["/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"];
    for mount in mounts.lines() {
        let fields: Vec<&str> = mount.split(' ').collect();
        let (point, options) = (fields[4], fields[5]);
        let is_library = point.contains(".so");
        let expected = ["/", "/proc", &binary].contains(&point) || devices.contains(&point) || is_library;
        assert!(expected, "{mount}");
        assert!(options.split(',').any(|option| option == "ro"), "{mount}");
        assert!(options.split(',').any(|option| option == "nosuid"), "{mount}");
    }
    assert!(prisoner.end().await.success());
}

#[tokio::test]
async fn no_descriptor_is_passed_on_but_the_standard_streams() {
    let folder = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(folder.path().join("of the node")).unwrap();
    let is_seen = async |layers| {
        let open = Prisoner::start(layers).await.show("show_descriptors").await;
        open.contains("of the node")
    };
    rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
    assert!(is_seen("").await, "unconfined it is passed on");
    assert!(!is_seen("namespaces").await);
}

#[tokio::test]
async fn outside_it_is_nobody() {
    let prisoner = Prisoner::start("namespaces").await;
    let (init, agent) = prisoner.family();
    for pid in [init, agent] {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let uid = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
        let expected = if is_root() {
            65_534
        } else {
            rustix::process::geteuid().as_raw()
        };
        assert!(
            uid.split_ascii_whitespace().all(|id| id == expected.to_string()),
            "{uid}"
        );
    }
    // Who it is on the host may be chosen.
    if is_root() {
        let mut chosen = command("namespaces");
        chosen.args(["--confine-uid=4321", "--confine-gid=4322"]);
        let prisoner = Prisoner::start_command(chosen).await;
        let (_, agent) = prisoner.family();
        let status = std::fs::read_to_string(format!("/proc/{agent}/status")).unwrap();
        assert!(status.contains("Uid:\t4321\t4321\t4321\t4321\n"), "{status}");
        assert!(status.contains("Gid:\t4322\t4322\t4322\t4322\n"), "{status}");
    }
    rustix::process::kill_process(Pid::from_raw(i32::try_from(agent).unwrap()).unwrap(), Signal::KILL).unwrap();
    crate::attempts::gone(init).await;
}
