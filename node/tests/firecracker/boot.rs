//! What is asked of Firecracker for a boot, in which order, and what comes of it.

use nex_node::machines::firecracker::{Balloon, CpuTemplate, FirecrackerDriver, HugePages, RateLimiters, TokenBucket};
use nex_node::machines::{DriverKind, MachineDriver, MachineError, Port};
use serde_json::{Value, json};

use crate::lab::{Lab, Node, within};

/// Boots one machine and returns what its API was asked.
async fn requests(lab: &Lab, driver: &FirecrackerDriver) -> Vec<(String, Value)> {
    let machine = within(driver.boot("m-1")).await.unwrap();
    machine.kill();
    within(machine.wait()).await;
    lab.requests()
}

fn request(name: &str, body: Value) -> (String, Value) {
    (name.to_owned(), body)
}

const BOOT_ARGS: &str = "console=ttyS0 quiet loglevel=3 reboot=k panic=1 pci=off swiotlb=noforce \
                         i8042.noaux i8042.nomux i8042.dumbkbd";

#[tokio::test]
async fn asks_for_the_least_machine_in_order() {
    let lab = Lab::new();
    let driver = lab.driver().await;
    assert_eq!(driver.kind(), DriverKind::Firecracker);
    let expected = [
        request("GET /", Value::Null),
        request(
            "PUT /machine-config",
            json!({"vcpu_count": 1, "mem_size_mib": 256, "smt": false, "track_dirty_pages": false}),
        ),
        request(
            "PUT /boot-source",
            json!({"kernel_image_path": "vmlinux", "initrd_path": "initrd.cpio", "boot_args": BOOT_ARGS}),
        ),
        request(
            "PUT /drives/rootfs",
            json!({"drive_id": "rootfs", "path_on_host": "rootfs.squashfs", "is_root_device": false, "is_read_only": true}),
        ),
        request("PUT /vsock", json!({"guest_cid": 3, "uds_path": "v.sock"})),
        request("PUT /entropy", json!({})),
        request("PUT /actions", json!({"action_type": "InstanceStart"})),
    ];
    assert_eq!(requests(&lab, &driver).await, expected);
    let arguments = [
        "--id",
        "m-1",
        "--api-sock",
        "api.sock",
        "--level",
        "Warning",
        "--show-level",
    ];
    assert_eq!(lab.arguments("firecracker"), [arguments]);
    lab.assert_nothing_left();
}

#[tokio::test]
async fn asks_for_everything_that_is_configured() {
    let lab = Lab::new();
    let mut config = lab.config();
    (config.vcpus, config.memory_mib) = (4, 512);
    config.huge_pages = HugePages::Transparent;
    config.cpu_template = Some(CpuTemplate::T2CL);
    config.rate_limiters = RateLimiters {
        bandwidth: Some(TokenBucket {
            size: 10_000_000,
            refill_time_ms: 100,
            one_time_burst: Some(50_000_000),
        }),
        iops: Some(TokenBucket {
            size: 1_000,
            refill_time_ms: 1_000,
            one_time_burst: None,
        }),
    };
    config.balloon = Some(Balloon {
        amount_mib: 64,
        deflate_on_oom: true,
        stats_interval_s: 5,
    });
    config.agent_args = vec!["--heap-bytes".to_owned(), "1".to_owned()];
    config.agent_env = vec![("RUST_LOG".to_owned(), "warn".to_owned())];
    let driver = FirecrackerDriver::new(config).await.unwrap();
    let requests = requests(&lab, &driver).await;
    let names: Vec<&str> = requests.iter().map(|(name, _)| name.as_str()).collect();
    let order = [
        "GET /",
        "PUT /machine-config",
        "PUT /boot-source",
        "PUT /drives/rootfs",
        "PUT /vsock",
        "PUT /entropy",
        "PUT /balloon",
        "PUT /actions",
    ];
    assert_eq!(names, order);
    let machine = json!({
        "vcpu_count": 4, "mem_size_mib": 512, "smt": false, "track_dirty_pages": false,
        "cpu_template": "T2CL", "huge_pages": "Transparent",
    });
    assert_eq!(requests[1].1, machine);
    let limiter = json!({
        "bandwidth": {"size": 10_000_000, "refill_time": 100, "one_time_burst": 50_000_000},
        "ops": {"size": 1_000, "refill_time": 1_000},
    });
    assert_eq!(requests[3].1["rate_limiter"], limiter);
    let balloon = json!({"amount_mib": 64, "deflate_on_oom": true, "stats_polling_interval_s": 5});
    assert_eq!(requests[6].1, balloon);
    let start = &lab.heard("Start")[0];
    assert_eq!(
        start["args"],
        json!(["--confine=landlock,seccomp,rlimits", "--heap-bytes", "1"])
    );
    assert_eq!(start["env"], json!([["RUST_LOG", "warn"]]));
}

#[tokio::test]
async fn one_limiter_alone_is_applied_alone() {
    let lab = Lab::new();
    let mut config = lab.config();
    config.rate_limiters.iops = Some(TokenBucket {
        size: 5,
        refill_time_ms: 7,
        one_time_burst: None,
    });
    let driver = FirecrackerDriver::new(config).await.unwrap();
    let requests = requests(&lab, &driver).await;
    assert_eq!(
        requests[3].1["rate_limiter"],
        json!({"ops": {"size": 5, "refill_time": 7}})
    );
}

#[tokio::test]
async fn a_machine_boots_and_its_agent_answers() {
    let lab = Lab::new();
    let driver = lab.driver().await;
    let machine = within(driver.boot("m")).await.unwrap();
    assert!(!machine.start().restored && !machine.start().elapsed.is_zero());
    assert!(
        lab.heard("Resume").is_empty(),
        "a machine may become a template until it is connected"
    );
    let mut node = Node::connect(&machine, "pid").await;
    assert_eq!(node.call("").await, machine.pid().to_string());
    assert_eq!(lab.heard("Resume").len(), 1);
    let again = within(machine.connect(Port::Link)).await.err().unwrap();
    assert!(again.to_string().contains("before"), "{again}");

    let twice = within(driver.boot("m")).await.unwrap_err();
    assert!(matches!(twice, MachineError::File { .. }), "{twice}");
    assert_eq!(node.call("").await, machine.pid().to_string());
    let other = within(driver.boot("n")).await.unwrap();
    assert_ne!(
        Node::connect(&other, "pid").await.call("").await,
        machine.pid().to_string()
    );
}
