//! The options on the command line.

use std::process::Output;

use nex_agent::confine::{Layer, Probe};

use crate::attempts::command;

async fn run(arguments: &[&str]) -> (Output, String) {
    let output = command("").args(arguments).output().await.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, stderr)
}

#[tokio::test]
async fn the_probe_tells_of_each_layer() {
    let (output, stderr) = run(&["--probe-confinement"]).await;
    assert!(output.status.success(), "{stderr}");
    let probe: Probe = serde_json::from_slice(&output.stdout).unwrap();
    for layer in Layer::ALL {
        let report = &probe.layers[&layer];
        assert!(
            report.available,
            "these tests need a host with {layer}: {:?}",
            report.reason
        );
    }
    assert!(probe.landlock_abi.is_some_and(|abi| abi > 0));
}

#[tokio::test]
async fn the_probe_tells_why_a_layer_is_missing() {
    // In a namespace that allows no others, as in most containers.
    let script = "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$0\" --probe-confinement";
    let output = tokio::process::Command::new("unshare")
        .args(["--user", "--map-root-user", "sh", "-c", script])
        .arg(crate::escape_probe::escape_probe())
        .output()
        .await
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let probe: Probe = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {stderr}"));
    let report = &probe.layers[&Layer::Namespaces];
    assert!(!report.available);
    let reason = report.reason.as_deref().unwrap();
    assert!(reason.contains("namespaces"), "{reason}");
    assert!(probe.layers[&Layer::Seccomp].available);
}

#[tokio::test]
async fn bad_options_are_refused_with_a_reason() {
    let (output, stderr) = run(&["--confine=seccomp,jail"]).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr.contains("'jail'"), "{stderr}");
    assert!(stderr.contains("namespaces, landlock, seccomp, rlimits"), "{stderr}");

    let (output, stderr) = run(&["--confine-uid=0"]).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr.contains("0 is not in 1.."), "{stderr}");

    let (output, stderr) = run(&["--confine=seccomp", "--cgroup=/no/such/group"]).await;
    assert_eq!(output.status.code(), Some(71));
    assert!(stderr.contains("/no/such/group: No such file"), "{stderr}");

    let (output, stderr) = run(&["--confine=seccomp", "--link-path=/run/x"]).await;
    assert_eq!(output.status.code(), Some(71));
    assert!(stderr.contains("--link-path"), "{stderr}");
}
