//! The same with Firecracker itself, where there is one: `FIRECRACKER_BIN` names it, `NEX_RESOURCE_DIR` a folder with an
//! image, and the host has KVM. `JAILER_BIN`, as root, adds the jail.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nex_node::machines::MachineDriver;
use nex_node::machines::firecracker::{FirecrackerConfig, FirecrackerDriver, JailerConfig};

use crate::lab::{Node, is_root, within};

const ECHO: &str = "(subject, payload) => payload";

#[tokio::test]
async fn firecracker_for_real() {
    let Some(firecracker_bin) = std::env::var_os("FIRECRACKER_BIN").map(PathBuf::from) else {
        println!("skipped: FIRECRACKER_BIN is not set");
        return;
    };
    let resources = std::env::var_os("NEX_RESOURCE_DIR").map(PathBuf::from);
    let Some(image) = resources
        .map(|folder| folder.join("image"))
        .filter(|image| image.is_dir())
    else {
        println!("skipped: NEX_RESOURCE_DIR has no image");
        return;
    };
    if std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_err()
    {
        println!("skipped: /dev/kvm cannot be opened");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut config = FirecrackerConfig {
        firecracker_bin,
        memory_mib: 512,
        ..FirecrackerConfig::new(image, folder.path().join("run"))
    };
    boots_and_restores(config.clone(), &folder.path().join("plain")).await;
    match std::env::var_os("JAILER_BIN") {
        Some(jailer_bin) if is_root() => {
            config.jailer = Some(JailerConfig {
                jailer_bin: jailer_bin.into(),
                ..JailerConfig::default()
            });
            boots_and_restores(config, &folder.path().join("jailed")).await;
        }
        _ => println!("without the jailer: JAILER_BIN is not set, or this is not root"),
    }
}

async fn boots_and_restores(config: FirecrackerConfig, template: &Path) {
    let driver = FirecrackerDriver::new(config).await.unwrap();
    let machine = within(driver.boot("first")).await.unwrap();
    assert_eq!(Node::connect(&machine, ECHO).await.call("hello").await, "hello");
    let began = std::time::Instant::now();
    within(machine.stop(Duration::from_secs(20))).await;
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "it did not stop when it was asked to"
    );

    let original = within(driver.boot("original")).await.unwrap();
    let templates = driver.templating().unwrap();
    within(templates.take(original, template)).await.unwrap();
    for id in ["a", "b"] {
        let copy = within(templates.restore(template, id)).await.unwrap();
        println!("{id} was restored in {:?}", copy.start().elapsed);
        assert_eq!(Node::connect(&copy, ECHO).await.call("hello").await, "hello");
    }
}
