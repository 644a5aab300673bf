//! Whatever goes wrong has an error that says what, comes in time, and leaves nothing.

use std::fs;
use std::time::{Duration, Instant};

use nex_node::machines::MachineError;
use nex_node::machines::firecracker::{FirecrackerConfig, FirecrackerDriver};

use crate::lab::{Lab, within};

/// The error of a boot with a stub that behaves like this.
async fn error(behaviour: &str) -> MachineError {
    let lab = Lab::new();
    lab.behave(behaviour);
    lab.failure(lab.config()).await
}

/// The same, for what ends only when the time is over.
async fn late_error(behaviour: &str) -> MachineError {
    let lab = Lab::new();
    lab.behave(behaviour);
    let mut config = lab.config();
    config.boot_timeout = Duration::from_secs(1);
    let began = Instant::now();
    let error = lab.failure(config).await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(4), "it took {took:?}");
    error
}

#[tokio::test]
async fn every_refusal_is_told_with_its_request() {
    for request in [
        "GET /",
        "PUT /machine-config",
        "PUT /boot-source",
        "PUT /drives/rootfs",
        "PUT /vsock",
        "PUT /entropy",
        "PUT /actions",
    ] {
        let error = error(&format!("refuse {request}")).await;
        assert!(matches!(error, MachineError::Refused { .. }), "{error}");
        let error = error.to_string();
        assert!(error.starts_with(&format!("{request}: not today")), "{error}");
    }
}

#[tokio::test]
async fn every_exit_code_is_explained() {
    for (code, meaning) in [
        (1, "error of its own"),
        (2, "impossible"),
        (148, "system call"),
        (149, "bus error"),
        (150, "segmentation"),
        (151, "larger than"),
        (152, "configuration"),
        (153, "arguments"),
        (154, "processor time"),
        (155, "broken pipe"),
        (156, "hang-up"),
        (157, "illegal instruction"),
        (77, "code 77"),
    ] {
        let error = error(&format!("exit {code}")).await;
        assert!(matches!(error, MachineError::Start(_)), "{error}");
        let error = error.to_string();
        assert!(
            error.contains(&format!("code {code}")) && error.contains(meaning),
            "{error}"
        );
        assert!(error.contains("as the test wants it"), "its last words: {error}");
    }
}

#[tokio::test]
async fn a_death_in_the_middle_is_explained() {
    for request in ["PUT /vsock", "PUT /actions"] {
        let error = error(&format!("die {request}")).await.to_string();
        assert!(error.starts_with(request), "{error}");
        assert!(error.contains("code 148") && error.contains("bad syscall"), "{error}");
    }
}

#[tokio::test]
async fn silence_ends_with_the_time() {
    for behaviour in [
        "no-socket",
        "silent GET /",
        "silent PUT /actions",
        "vsock-silent",
        "guest-idles",
    ] {
        let error = late_error(behaviour).await;
        let in_time = match &error {
            MachineError::TimedOut(after) => *after == Duration::from_secs(1),
            MachineError::Start(why) => why.contains("vsock port 1") || why.contains("no Ready within"),
            _ => false,
        };
        assert!(in_time, "{behaviour}: {error}");
    }
}

#[tokio::test]
async fn a_guest_that_never_listens_is_told_as_such() {
    let error = late_error("vsock-closes").await.to_string();
    assert!(error.contains("1s") || error.contains("vsock port 1"), "{error}");
}

#[tokio::test]
async fn answers_that_are_none_are_refused() {
    for (behaviour, part) in [
        ("garbage", "GET /"),
        ("endless-head", "GET /"),
        ("endless-body", "longer than 65536 bytes"),
        ("not-an-instance", r#"it answered {"id":1}"#),
        ("vsock-lies", "200 fine"),
        ("guest-fails", "no agent found"),
        ("guest-babbles", "control message"),
    ] {
        let error = error(behaviour).await.to_string();
        assert!(error.contains(part), "{behaviour}: {error}");
        assert!(!error.contains('\n') && error.len() < 2_000, "{error}");
    }
}

/// The error of a driver that is not even made.
async fn no_driver(config: FirecrackerConfig) -> String {
    within(FirecrackerDriver::new(config)).await.unwrap_err().to_string()
}

#[tokio::test]
async fn old_and_unknown_versions_are_refused() {
    let lab = Lab::new();
    lab.version("1.13.9");
    let old = no_driver(lab.config()).await;
    assert!(old.contains("1.13.9") && old.contains("1.14.0"), "{old}");
    fs::write(lab.path("firecracker-version"), "what version?\n").unwrap();
    let unknown = no_driver(lab.config()).await;
    assert!(
        unknown.contains("what version?") && unknown.contains("v1.14.0"),
        "{unknown}"
    );
    fs::write(lab.path("firecracker-version"), "").unwrap();
    let none = no_driver(lab.config()).await;
    assert!(none.contains("names no version"), "{none}");
    lab.version("1.14.0");
    FirecrackerDriver::new(lab.config()).await.unwrap();
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let lab = Lab::new();
    let with = |change: fn(&mut FirecrackerConfig)| {
        let mut config = lab.config();
        change(&mut config);
        no_driver(config)
    };
    let kvm = with(|config| config.kvm_device = "/no/kvm".into()).await;
    assert!(kvm.contains("KVM is missing: /no/kvm"), "{kvm}");
    let program = with(|config| config.firecracker_bin = "/no/firecracker".into()).await;
    assert!(program.contains("Firecracker is missing: /no/firecracker"), "{program}");
    let nowhere = with(|config| config.firecracker_bin = "no-such-firecracker".into()).await;
    assert!(nowhere.contains("no-such-firecracker"), "{nowhere}");
    let image = with(|config| config.image = "/no/image".into()).await;
    assert!(image.contains("image is missing: /no/image"), "{image}");
    let nonsense = with(|config| config.vcpus = 0).await;
    assert!(nonsense.contains("vcpus is 0"), "{nonsense}");
    for file in ["vmlinux", "initrd.cpio", "rootfs.squashfs"] {
        fs::write(lab.path("image").join(file), "damaged").unwrap();
        let damaged = no_driver(lab.config()).await;
        assert!(damaged.contains(&format!("{file} is damaged")), "{damaged}");
        fs::remove_file(lab.path("image").join(file)).unwrap();
        let missing = no_driver(lab.config()).await;
        assert!(missing.contains(&format!("{file} is missing")), "{missing}");
        lab.image("6.1.0");
    }
}
