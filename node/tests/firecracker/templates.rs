//! Templates: taken once, restored often.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nex_node::machines::firecracker::{FirecrackerConfig, FirecrackerDriver, HugePages};
use nex_node::machines::{MachineDriver, MachineError};
use serde_json::{Value, json};

use crate::lab::{Lab, Node, exists, mode_and_owner, within};

#[tokio::test]
async fn copies_of_a_template_are_alike_and_yet_their_own() {
    let lab = Lab::new();
    let driver = lab.driver().await;
    let templates = driver.templating().unwrap();
    let original = within(driver.boot("original")).await.unwrap();
    let pid = original.pid();
    lab.forget();
    let template = lab.path("templates/t");
    within(templates.take(original, &template)).await.unwrap();
    assert!(!exists(pid), "a template's machine does not live on");
    assert_eq!(fs::read_dir(lab.path("run/firecracker")).unwrap().count(), 0);
    let expected = [
        ("PATCH /vm".to_owned(), json!({"state": "Paused"})),
        (
            "PUT /snapshot/create".to_owned(),
            json!({"snapshot_type": "Full", "snapshot_path": "template.state", "mem_file_path": "template.memory"}),
        ),
    ];
    assert_eq!(lab.requests(), expected);
    assert_eq!(mode_and_owner(&template).0, 0o700);
    for (file, size) in [("template.state", None), ("template.memory", Some(256 << 20))] {
        assert_eq!(mode_and_owner(&template.join(file)).0, 0o444);
        let length = fs::metadata(template.join(file)).unwrap().len();
        assert!(size.is_none_or(|size| size == length), "{file} has {length} bytes");
    }

    lab.forget();
    let mut copies = Vec::new();
    for id in ["a", "b"] {
        let copy = within(templates.restore(&template, id)).await.unwrap();
        assert!(copy.start().restored);
        copies.push(copy);
    }
    let load = json!({
        "snapshot_path": "template.state",
        "mem_backend": {"backend_type": "File", "backend_path": "template.memory"},
        "resume_vm": true,
    });
    let one = [
        ("GET /".to_owned(), Value::Null),
        ("PUT /snapshot/load".to_owned(), load),
    ];
    assert_eq!(lab.requests(), [one.clone(), one].concat());
    let resumed = lab.heard("Resume");
    assert_eq!(
        resumed.len(),
        2,
        "a copy has its time and random numbers before anybody connects it"
    );
    assert_ne!(resumed[0]["seed"], resumed[1]["seed"]);
    for resume in resumed {
        let told = Duration::from_nanos(resume["unix_nanos"].as_u64().unwrap());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        assert!(now - told < Duration::from_secs(60), "it is not {told:?}");
    }
    let mut pids = Vec::new();
    for copy in &copies {
        let pid = Node::connect(copy, "pid").await.call("").await;
        assert_eq!(pid, copy.pid().to_string());
        pids.push(pid);
    }
    assert_ne!(pids[0], pids[1]);
    // The template's own files outlive its copies.
    copies.iter().for_each(|copy| copy.kill());
    for copy in &copies {
        within(copy.wait()).await;
    }
    lab.assert_nothing_left();
    assert!(template.join("template.memory").exists());
}

#[tokio::test]
async fn a_machine_that_was_connected_is_no_template() {
    let lab = Lab::new();
    let driver = lab.driver().await;
    let machine = within(driver.boot("m")).await.unwrap();
    let _node = Node::connect(&machine, "echo").await;
    let folder = lab.path("t");
    let error = within(driver.templating().unwrap().take(machine, &folder))
        .await
        .unwrap_err();
    assert!(matches!(error, MachineError::Unsupported(_)), "{error}");
    assert!(!folder.exists());
    lab.assert_nothing_left();
}

#[tokio::test]
async fn a_refused_snapshot_ends_the_machine() {
    for request in ["PATCH /vm", "PUT /snapshot/create"] {
        let lab = Lab::new();
        lab.behave(&format!("refuse {request}"));
        let driver = lab.driver().await;
        let machine = within(driver.boot("m")).await.unwrap();
        let error = within(driver.templating().unwrap().take(machine, &lab.path("t")))
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), format!("{request}: not today"));
        lab.assert_nothing_left();
    }
}

async fn template(lab: &Lab, driver: &FirecrackerDriver) -> std::path::PathBuf {
    let machine = within(driver.boot("original")).await.unwrap();
    let folder = lab.path("t");
    within(driver.templating().unwrap().take(machine, &folder))
        .await
        .unwrap();
    folder
}

#[tokio::test]
async fn a_damaged_template_is_refused_with_what_firecracker_says() {
    let lab = Lab::new();
    let driver = lab.driver().await;
    let template = template(&lab, &driver).await;
    let state = template.join("template.state");
    fs::remove_file(&state).unwrap();
    fs::write(&state, "{").unwrap();
    let error = within(driver.templating().unwrap().restore(&template, "m"))
        .await
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("PUT /snapshot/load: Load snapshot error"), "{error}");
    assert!(error.contains("CRC") && error.contains("code 1"), "{error}");
    lab.assert_nothing_left();
    let error = within(driver.templating().unwrap().restore(&lab.path("none"), "m"))
        .await
        .unwrap_err();
    assert!(matches!(error, MachineError::File { .. }), "{error}");
}

#[tokio::test]
async fn a_connection_lost_to_a_late_reset_is_made_again() {
    let lab = Lab::new();
    lab.version("1.15.0");
    let driver = lab.driver().await;
    let template = template(&lab, &driver).await;
    lab.behave("resets-late");
    let copy = within(driver.templating().unwrap().restore(&template, "m"))
        .await
        .unwrap();
    assert_eq!(Node::connect(&copy, "echo").await.call("x").await, "x");
    drop(copy);

    // From 1.16 on it is no such thing.
    let lab = Lab::new();
    let driver = lab.driver().await;
    let template = self::template(&lab, &driver).await;
    lab.behave("resets-late");
    let error = within(driver.templating().unwrap().restore(&template, "m"))
        .await
        .unwrap_err();
    assert!(matches!(error, MachineError::Start(_)), "{error}");
    lab.assert_nothing_left();
}

#[tokio::test]
async fn whatever_goes_into_a_machine_goes_into_the_key() {
    let lab = Lab::new();
    let key = async |change: fn(&mut FirecrackerConfig)| {
        let mut config = lab.config();
        change(&mut config);
        let driver = FirecrackerDriver::new(config).await.unwrap();
        driver.templating().unwrap().template_key().to_owned()
    };
    let usual = key(|_| {}).await;
    assert!(
        usual.len() == 64 && usual.bytes().all(|b| b.is_ascii_hexdigit()),
        "{usual}"
    );
    assert_eq!(key(|config| config.boot_timeout = Duration::from_secs(1)).await, usual);
    assert_ne!(key(|config| config.memory_mib = 258).await, usual);
    assert_ne!(
        key(|config| config.agent_args = vec!["--merge-memory".to_owned()]).await,
        usual
    );
    assert_ne!(key(|config| config.huge_pages = HugePages::Transparent).await, usual);
    lab.image("6.1.1");
    let other_image = key(|_| {}).await;
    assert_ne!(other_image, usual);
    lab.version("1.17.1");
    assert_ne!(key(|_| {}).await, other_image);

    let mut config = lab.config();
    config.huge_pages = HugePages::Reserved2m;
    let driver = FirecrackerDriver::new(config).await.unwrap();
    assert!(
        driver.templating().is_none(),
        "reserved pages cannot be restored from a file"
    );
}
