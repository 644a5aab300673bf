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
