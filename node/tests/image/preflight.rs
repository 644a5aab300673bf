//! `nex preflight`: what it says, what it exits with, and what it has installed.

use std::path::PathBuf;
use std::process::Command;

use nex_node::machines::image::GuestImage;
use nex_node::machines::resources::{OLDEST_QEMU, Resources};
use serde_json::Value;

use super::support::{Bench, cpio, run, succeeds};

/// The folder that `cargo xtask setup` fills; `None` if tests of virtual machines are to be skipped.
fn resources() -> Option<Resources> {
    if std::env::var("NEX_SKIP_VM_TESTS").is_ok_and(|value| value == "1") {
        eprintln!("SKIPPED: NEX_SKIP_VM_TESTS is set, nothing was tested of virtual machines");
        return None;
    }
    let built = PathBuf::from(env!("CARGO_BIN_EXE_nex"));
    let folder = std::env::var_os("NEX_RESOURCE_DIR").map_or_else(
        || built.ancestors().nth(2).unwrap().join("tools/machines"),
        PathBuf::from,
    );
    assert!(
        folder.is_dir(),
        "{} is missing: run `cargo xtask setup`, or set NEX_SKIP_VM_TESTS=1",
        folder.display()
    );
    Some(Resources::new(folder))
}

#[test]
fn an_empty_folder_is_told_from_a_full_one() {
    let bench = Bench::new();
    for driver in ["qemu", "firecracker"] {
        let ran = run(&mut bench.nex(&["preflight", "--driver", driver, "--check", "--resource-dir", "none"]));
        assert_eq!(ran.code, 1, "{}{}", ran.stdout, ran.stderr);
        for line in [
            "⛔ Dependency Missing - kernel",
            "⛔ Dependency Missing - guest image",
            "none/image",
        ] {
            assert!(ran.stdout.contains(line), "{line} is missing in\n{}", ran.stdout);
        }
    }
    let ran = run(&mut bench.nex(&["node", "preflight", "--driver", "firecracker", "--check"]));
    assert_eq!(ran.code, 1);
    assert!(
        ran.stdout
            .contains("github.com/firecracker-microvm/firecracker/releases"),
        "{}",
        ran.stdout
    );
    assert!(ran.stdout.contains(".nex/resources/bin"), "{}", ran.stdout);
    // A look makes nothing.
    assert_eq!(bench.names(), ["vmlinux"]);
}

#[test]
fn programs_get_json_and_are_asked_nothing() {
    let bench = Bench::new();
    for further in [&["--check"][..], &[]] {
        let arguments = [
            &["preflight", "--driver", "qemu", "--json", "--resource-dir", "none"],
            further,
        ]
        .concat();
        let ran = run(&mut bench.nex(&arguments));
        assert_eq!(ran.code, 1, "{}", ran.stderr);
        let report: Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!(report["satisfied"], false);
        assert_eq!(report["installed"], Value::Array(Vec::new()));
        let kernel = report["checks"]
            .as_array()
            .unwrap()
            .iter()
            .find(|check| check["what"] == "kernel")
            .unwrap();
        assert_eq!(kernel["driver"], "qemu");
        assert_eq!(kernel["state"], "missing");
        assert_eq!(kernel["item"], "kernel");
    }
    // Without a terminal nobody says yes either.
    let ran = run(&mut bench.nex(&["preflight", "--driver", "qemu", "--resource-dir", "none"]));
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr.contains("[kernel], do you want to install? [y/N]"),
        "{}",
        ran.stderr
    );
    assert!(ran.stderr.contains("--yes installs without asking"), "{}", ran.stderr);
}

#[test]
fn where_there_is_no_apt_it_says_so() {
    let bench = Bench::new();
    let mut command = bench.nex(&["preflight", "--driver", "qemu", "--yes", "--resource-dir", "none"]);
    let ran = run(command.env("PATH", bench.path("nothing")));
    assert_eq!(ran.code, 1, "{}{}", ran.stdout, ran.stderr);
    assert!(
        ran.stdout.contains("⛔ Dependency Missing - qemu-system-x86_64"),
        "{}",
        ran.stdout
    );
    assert!(ran.stderr.contains("qemu was not installed: "), "{}", ran.stderr);
    assert!(ran.stderr.contains("apt"), "{}", ran.stderr);
    // Nothing half done.
    for folder in ["none/qemu", "none/apt", "none/.qemu.partial", "none/.apt.partial"] {
        assert!(!bench.path(folder).exists(), "{folder} is left");
    }
}

#[test]
fn the_driver_and_the_folder_may_be_configured() {
    let bench = Bench::new();
    let config = br#"{"machine_driver": "qemu", "default_resource_dir": "there"}"#;
    bench.file("node.json", config);
    let ran = run(&mut bench.nex(&["preflight", "--config", "node.json", "--check"]));
    assert_eq!(ran.code, 1);
    assert!(ran.stdout.contains("there/kernel"), "{}", ran.stdout);
    let ran = run(&mut bench.nex(&["preflight", "--config", "none.json", "--check"]));
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("none.json"), "{}", ran.stderr);
    // No flag, no configuration: processes, which need nothing of the folder.
    let ran = run(&mut bench.nex(&["preflight", "--check"]));
    assert!(
        ran.stdout.contains("[nex-agent]") && !ran.stdout.contains("kernel"),
        "{}",
        ran.stdout
    );
}

#[test]
fn an_image_that_was_made_by_hand_needs_no_kernel_beside_it() {
    let Some(resources) = resources() else { return };
    let bench = Bench::new();
    let kernel = resources.image().join("vmlinux");
    succeeds(&mut bench.nex(&["rootfs", "--kernel", kernel.to_str().unwrap(), "-o", "there/image"]));
    let check = ["preflight", "--driver", "qemu", "--check", "--resource-dir", "there"];
    let said = succeeds(&mut bench.nex(&check));
    assert!(said.contains("the guest image has one"), "{said}");

    // Made with something of the user's own, it is not made anew without that.
    bench.file("data", b"");
    let mut made = bench.rootfs(&[
        "--kernel",
        kernel.to_str().unwrap(),
        "--add",
        "data:/etc/data",
        "-o",
        "there/image",
    ]);
    succeeds(&mut made);
    let ran = run(&mut bench.nex(&["preflight", "--driver", "qemu", "--yes", "--resource-dir", "there"]));
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.stdout.contains("was made with another nex-agent"), "{}", ran.stdout);
    assert!(
        ran.stdout
            .contains("`nex rootfs` again with what was added to it: /etc/data"),
        "{}",
        ran.stdout
    );
    assert!(!ran.stderr.contains("Installing guest image"), "{}", ran.stderr);
}

#[test]
fn what_was_installed_works() {
    let Some(resources) = resources() else { return };
    let bench = Bench::new();
    let folder = resources.folder().to_str().unwrap();
    let looked = run(&mut bench.nex(&["preflight", "--driver", "qemu", "--check", "--resource-dir", folder]));
    assert!(
        looked.code == 0 && !looked.stdout.contains('⛔'),
        "run `cargo xtask setup`, which makes the image anew when the agent has changed:\n{}",
        looked.stdout
    );
    // The second time there is nothing left to do.
    let again = run(&mut bench.nex(&["preflight", "--driver", "qemu", "--yes", "--resource-dir", folder]));
    assert_eq!((again.code, again.stderr.as_str()), (0, ""), "{}", again.stdout);

    let (qemu, version) = resources.qemu(&[]).unwrap();
    assert!(version >= OLDEST_QEMU);
    let output = |command: &mut Command| String::from_utf8(command.output().unwrap().stdout).unwrap();
    assert!(output(qemu.command().arg("--version")).starts_with("QEMU emulator version "));
    assert!(output(qemu.command().args(["-M", "help"])).contains("\nmicrovm "));

    let image = GuestImage::open(&resources.image()).unwrap();
    let modules = &image.manifest().modules;
    let at = |name: &str| modules.iter().position(|module| module == name);
    for (first, then) in [
        ("virtio", "virtio_mmio"),
        ("virtio", "virtio_blk"),
        ("vsock", "vmw_vsock_virtio_transport"),
    ] {
        // A kernel may have them built in.
        if let (Some(first), Some(then)) = (at(first), at(then)) {
            assert!(first < then, "{modules:?}");
        }
    }
    let names = cpio(&std::fs::read(image.initrd()).unwrap());
    for (number, module) in modules.iter().enumerate() {
        let name = format!("modules/{number:02}-{module}.ko");
        assert!(names.contains(&name), "{name} is missing in {names:?}");
    }
    assert!(std::fs::read(image.vmlinux()).unwrap().starts_with(b"\x7fELF"));
}
