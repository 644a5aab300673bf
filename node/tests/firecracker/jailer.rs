//! Jailed machines: what the jailer is told, what a machine can get at, and what is left afterwards.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nex_node::machines::firecracker::{FirecrackerConfig, FirecrackerDriver, JailCgroup, JailerConfig};
use nex_node::machines::{MachineDriver, RuntimeDir};

use crate::lab::{Lab, Node, exists, is_root, mode_and_owner, within};
use crate::stub::jail::cgroup_root;

const FIRST: u32 = 3_999_900;

fn jailed(lab: &Lab) -> FirecrackerConfig {
    let mut config = lab.config();
    config.jailer = Some(JailerConfig {
        jailer_bin: lab.path("jailer"),
        uids: FIRST..=FIRST + 1,
        ..JailerConfig::default()
    });
    config
}

/// Jails are for root to make, so without it there is only one thing to see.
async fn driver(lab: &Lab, config: FirecrackerConfig) -> Option<FirecrackerDriver> {
    let driver = FirecrackerDriver::new(config).await;
    if is_root() {
        return Some(driver.unwrap());
    }
    let error = driver.unwrap_err().to_string();
    assert!(error.contains("needs root"), "{error}");
    assert!(lab.records().is_empty());
    None
}

#[tokio::test]
async fn a_jailed_machine_works_as_a_user_of_its_own() {
    let lab = Lab::new();
    let config = jailed(&lab);
    let runtime_dir = config.runtime_dir.clone();
    let Some(driver) = driver(&lab, config).await else {
        return;
    };
    // One that others may not read is copied, for the machine's user alone.
    let kernel = lab.path("image/vmlinux");
    fs::set_permissions(&kernel, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();

    let machine = within(driver.boot("m")).await.unwrap();
    let mut node = Node::connect(&machine, "pid").await;
    assert_eq!(node.call("").await, machine.pid().to_string());
    let firecracker = lab.path("firecracker");
    let uid = FIRST.to_string();
    let expected = [
        "--id",
        "m",
        "--exec-file",
        firecracker.to_str().unwrap(),
        "--uid",
        &uid,
        "--gid",
        &uid,
        "--chroot-base-dir",
        runtime_dir.to_str().unwrap(),
        "--resource-limit",
        "no-file=1024",
        "--resource-limit",
        "fsize=335544320",
        "--",
        "--api-sock",
        "api.sock",
        "--level",
        "Warning",
        "--show-level",
    ];
    assert_eq!(lab.arguments("jailer"), [expected]);
    assert!(
        !lab.arguments("firecracker")[0]
            .iter()
            .any(|argument| argument.contains("seccomp"))
    );
    assert!(lab.records().iter().any(|record| record["uid"] == FIRST));

    let root = runtime_dir.join("firecracker/m/root");
    assert_eq!(mode_and_owner(root.parent().unwrap()), (0o700, 0));
    assert_eq!(mode_and_owner(&root), (0o700, FIRST));
    assert_eq!(mode_and_owner(&root.join("vmlinux")), (0o400, FIRST));
    assert_eq!(
        mode_and_owner(&root.join("rootfs.squashfs")),
        mode_and_owner(&lab.path("image/rootfs.squashfs"))
    );
    assert!(is_link(
        &root.join("rootfs.squashfs"),
        &lab.path("image/rootfs.squashfs")
    ));
    assert!(!is_link(&root.join("vmlinux"), &kernel));
    assert_eq!(mode_and_owner(&kernel), (0o600, 0), "the image stays as it was");

    within(machine.stop(Duration::from_secs(20))).await;
    assert_eq!(lab.heard("Shutdown").len(), 2);
    lab.assert_nothing_left();
}

fn is_link(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(a).unwrap().ino() == fs::metadata(b).unwrap().ino()
}

#[tokio::test]
async fn no_two_machines_are_one_user() {
    let lab = Lab::new();
    let Some(driver) = driver(&lab, jailed(&lab)).await else {
        return;
    };
    let first = within(driver.boot("a")).await.unwrap();
    let _second = within(driver.boot("b")).await.unwrap();
    let error = within(driver.boot("c")).await.unwrap_err().to_string();
    assert!(error.contains("3999900 to 3999901"), "{error}");
    first.kill();
    within(first.wait()).await;
    let _third = within(driver.boot("c")).await.unwrap();
    let records = lab.records();
    let uids: Vec<_> = records.iter().filter_map(|record| record["uid"].as_u64()).collect();
    assert_eq!(uids, [FIRST, FIRST + 1, FIRST].map(u64::from));
}

#[tokio::test]
async fn copies_of_a_template_share_its_memory_and_cannot_write_it() {
    let lab = Lab::new();
    let Some(driver) = driver(&lab, jailed(&lab)).await else {
        return;
    };
    let templates = driver.templating().unwrap();
    let original = within(driver.boot("original")).await.unwrap();
    let template = lab.path("t");
    within(templates.take(original, &template)).await.unwrap();
    lab.assert_nothing_left();
    assert_eq!(mode_and_owner(&template), (0o700, 0));
    assert_eq!(mode_and_owner(&template.join("template.memory")), (0o444, 0));
    for id in ["a", "b"] {
        let copy = within(templates.restore(&template, id)).await.unwrap();
        assert_eq!(Node::connect(&copy, "echo").await.call("x").await, "x");
        let memory = lab.path("run/firecracker").join(id).join("root/template.memory");
        assert!(is_link(&memory, &template.join("template.memory")));
    }
    assert_eq!(mode_and_owner(&template.join("template.memory")), (0o444, 0));
}

#[tokio::test]
async fn its_cgroup_goes_with_it() {
    let lab = Lab::new();
    let parent = format!("nex-test-{}", std::process::id());
    // Not every container lets its root make control groups.
    let Some(group) = cgroup_root()
        .map(|root| root.join(&parent))
        .filter(|group| fs::create_dir(group).is_ok())
    else {
        println!("skipped: no control groups of version 2 can be made here");
        return;
    };
    let mut config = jailed(&lab);
    config.jailer.as_mut().unwrap().cgroup = Some(JailCgroup {
        parent: parent.clone(),
        settings: BTreeMap::from(
            [("cpu.max", "50000 100000"), ("memory.max", "300000000")]
                .map(|(file, value)| (file.to_owned(), value.to_owned())),
        ),
    });
    let Some(driver) = driver(&lab, config).await else {
        return;
    };
    let machine = within(driver.boot("m")).await.unwrap();
    let arguments = lab.arguments("jailer").remove(0);
    let expected = [
        "--cgroup-version",
        "2",
        "--parent-cgroup",
        &parent,
        "--cgroup",
        "cpu.max=50000 100000",
        "--cgroup",
        "memory.max=300000000",
    ];
    assert!(
        arguments.windows(expected.len()).any(|window| window == expected),
        "{arguments:?}"
    );
    assert!(group.join("m").exists());
    machine.kill();
    within(machine.wait()).await;
    assert!(!group.join("m").exists());
    fs::remove_dir(group).unwrap();
}

#[tokio::test]
async fn a_jailer_of_another_release_is_refused() {
    let lab = Lab::new();
    fs::write(lab.path("jailer-version"), "Jailer v1.15.0\n").unwrap();
    if is_root() {
        let error = FirecrackerDriver::new(jailed(&lab)).await.unwrap_err().to_string();
        assert!(error.contains("1.15.0") && error.contains("1.17.0"), "{error}");
    }
}

#[tokio::test]
async fn a_jailer_that_fails_is_quoted() {
    let lab = Lab::new();
    let mut config = jailed(&lab);
    // The real one would not know this file either.
    fs::write(
        lab.path("jailer"),
        "#!/bin/sh\n[ \"$1\" = --version ] && echo Jailer v1.17.0 || { echo no jail >&2; exit 1; }\n",
    )
    .unwrap();
    config.boot_timeout = Duration::from_secs(10);
    let Some(driver) = driver(&lab, config).await else {
        return;
    };
    let error = within(driver.boot("m")).await.unwrap_err().to_string();
    assert!(error.contains("code 1") && error.contains("no jail"), "{error}");
    lab.assert_nothing_left();
}

/// What this program is when it is started as a node that will be killed. As a test of its own it does nothing.
#[tokio::test]
async fn doomed_node() {
    let Ok(lab) = std::env::var("NEX_TEST_DOOMED") else {
        return;
    };
    let lab = Path::new(&lab);
    let runtime_dir = RuntimeDir::claim(&lab.join("nodes")).unwrap();
    let mut config = FirecrackerConfig::new(lab.join("image"), runtime_dir.path());
    config.firecracker_bin = lab.join("firecracker");
    config.kvm_device = "/dev/null".into();
    config.jailer = Some(JailerConfig {
        jailer_bin: lab.join("jailer"),
        ..JailerConfig::default()
    });
    let driver = FirecrackerDriver::new(config).await.unwrap();
    let machine = driver.boot("m").await.unwrap();
    println!("\nmachine {}", machine.pid());
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn the_machines_of_a_killed_node_are_cleared_away() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    let mut node = Command::new(std::env::current_exe().unwrap())
        .args(["jailer::doomed_node", "--exact", "--nocapture"])
        .env("NEX_TEST_DOOMED", lab.path(""))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(node.stdout.take().unwrap()).lines();
    let pid = lines.find_map(|line| line.unwrap().strip_prefix("machine ").map(str::to_owned));
    let pid: u32 = pid.expect("the node booted no machine").parse().unwrap();
    node.kill().unwrap();
    node.wait().unwrap();
    assert!(
        exists(pid),
        "a jailed process does not die with its node, or this test is not needed"
    );

    let next = RuntimeDir::claim(&lab.path("nodes")).unwrap();
    let gone = async {
        while exists(pid) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(gone).await;
    let left = fs::read_dir(lab.path("nodes")).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().path()).collect();
    assert_eq!(left, [next.path()]);
}
