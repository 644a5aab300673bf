//! The benchmarks run and report; what they report is of no interest here.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::process::Command;

fn quick(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_nex-bench"))
        .args(arguments)
        .arg("--quick")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn echo() {
    let report = quick(&["echo"]);
    assert!(report.contains("### 1024 B, 256 in flight"), "{report}");
    assert!(report.contains("| node and agent, module form |"), "{report}");
}

#[test]
fn runtime() {
    let report = quick(&["runtime"]);
    assert!(report.contains("start of a function"), "{report}");
}

#[test]
fn machines() {
    let report = quick(&["machines", "--drivers", "process"]);
    for part in [
        "| without namespaces |",
        "### Memory of a machine on the host",
        "### Deploy to first reply",
        "### Calls, 128 B, 64 in flight",
        "| process, hang (SIGSTOP) | 1 |",
    ] {
        assert!(report.contains(part), "{part}: {report}");
    }
    // The last columns say what is left of five machines.
    let churn = report
        .lines()
        .rfind(|line| line.starts_with("| process | 5 |"))
        .unwrap();
    assert!(churn.ends_with("| 0 | 0 | 0 | 0 |"), "{churn}");
}
