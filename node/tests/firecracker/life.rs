//! A machine's life after its boot: pauses, figures, logs, and its end.

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use nex_node::machines::firecracker::{Balloon, FirecrackerDriver};
use nex_node::machines::{MachineDriver, Port};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncReadExt;

use crate::lab::{Lab, Node, exists, within};

#[tokio::test]
async fn a_paused_machine_answers_when_it_goes_on() {
    let lab = Lab::new();
    let machine = within(lab.driver().await.boot("m")).await.unwrap();
    let mut node = Node::connect(&machine, "echo").await;
    machine.pause().await.unwrap();
    node.trigger("hello");
    let silence = tokio::time::timeout(Duration::from_millis(200), node.reply()).await;
    assert!(silence.is_err(), "it answered {silence:?}");
    machine.resume().await.unwrap();
    assert_eq!(node.reply().await, "hello");
    // Time has passed for everybody else.
    let resumes = async {
        while lab.heard("Resume").len() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(resumes).await;
}

#[tokio::test]
async fn no_pause_with_a_version_that_is_deaf_after_it() {
    let lab = Lab::new();
    lab.version("1.16.1");
    let machine = within(lab.driver().await.boot("m")).await.unwrap();
    let mut node = Node::connect(&machine, "echo").await;
    let error = machine.pause().await.unwrap_err().to_string();
    assert!(error.contains("1.16.1") && error.contains("1.17"), "{error}");
    assert_eq!(node.call("x").await, "x");
}

#[tokio::test]
async fn a_machine_tells_what_it_takes() {
    let lab = Lab::new();
    let mut config = lab.config();
    config.balloon = Some(Balloon {
        amount_mib: 8,
        deflate_on_oom: true,
        stats_interval_s: 1,
    });
    let driver = FirecrackerDriver::new(config).await.unwrap();
    let machine = within(driver.boot("m")).await.unwrap();
    assert!(machine.stats().resident_bytes > 1 << 20);
    assert!(machine.stats().proportional_bytes <= machine.stats().resident_bytes);
    let told = async {
        loop {
            if let Some(available) = machine.stats().guest_available_bytes {
                return available;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert_eq!(within(told).await, 123_456_789);
}

#[tokio::test]
async fn its_console_is_among_its_logs() {
    let lab = Lab::new();
    let machine = within(lab.driver().await.boot("m")).await.unwrap();
    let logs = machine.take_logs();
    assert_eq!(logs.len(), 2);
    assert!(machine.take_logs().is_empty(), "they are for whoever comes first");
    machine.kill();
    let mut text = String::new();
    for mut log in logs {
        within(log.read_to_string(&mut text)).await.unwrap();
    }
    assert!(text.contains("the guest's console"), "{text}");
}

#[tokio::test]
async fn stops_when_it_is_asked_to() {
    let lab = Lab::new();
    let driver = lab.driver().await;
    let machine = within(driver.boot("m")).await.unwrap();
    let _node = Node::connect(&machine, "echo").await;
    let status = within(machine.stop(Duration::from_secs(20))).await;
    assert_eq!(status.signal(), Some(9), "the guest kills its agent, and says so");
    assert_eq!(
        lab.heard("Shutdown").len(),
        2,
        "one to end the agent, one to end the machine"
    );
    assert!(
        !lab.requests()
            .iter()
            .any(|(_, body)| body["action_type"] == "SendCtrlAltDel")
    );
    lab.assert_nothing_left();
}

#[tokio::test]
async fn stops_when_its_keyboard_says_so() {
    let lab = Lab::new();
    lab.behave("ignores-shutdown");
    let machine = within(lab.driver().await.boot("m")).await.unwrap();
    let _node = Node::connect(&machine, "echo").await;
    let status = within(machine.stop(Duration::from_secs(4))).await;
    assert_eq!(status.code(), Some(0));
    assert_eq!(lab.requests().last().unwrap().1["action_type"], "SendCtrlAltDel");
    lab.assert_nothing_left();
}

#[tokio::test]
async fn is_killed_when_it_does_not_stop_in_time() {
    let lab = Lab::new();
    lab.behave("ignores-everything");
    let machine = within(lab.driver().await.boot("m")).await.unwrap();
    let _node = Node::connect(&machine, "echo").await;
    let began = Instant::now();
    let status = within(machine.stop(Duration::from_millis(500))).await;
    assert_eq!(status.signal(), Some(9));
    assert!(began.elapsed() >= Duration::from_millis(500));
    lab.assert_nothing_left();
}

#[tokio::test]
async fn nothing_is_left_of_a_machine_that_is_dropped() {
    let lab = Lab::new();
    let machine = within(lab.driver().await.boot("m")).await.unwrap();
    let pid = machine.pid();
    drop(machine);
    let gone = async {
        while exists(pid) || lab.path("run/firecracker/m").exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(gone).await;
    lab.assert_nothing_left();
}

#[tokio::test]
async fn nothing_is_left_of_a_boot_that_is_given_up() {
    let lab = Lab::new();
    lab.behave("vsock-silent");
    let driver = lab.driver().await;
    let mut boot = driver.boot("m");
    let started = async {
        while lab.requests().len() < 7 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        _ = &mut boot => panic!("it booted"),
        () = within(started) => {}
    }
    drop(boot);
    let gone = async {
        while lab.path("run/firecracker/m").exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(gone).await;
    lab.assert_nothing_left();
}

#[tokio::test]
async fn tells_how_the_agent_ended() {
    let lab = Lab::new();
    let machine = within(lab.driver().await.boot("m")).await.unwrap();
    // The agent ends with its link; the guest tells how, and then ends.
    Node::connect(&machine, "echo").await.hang_up();
    let status = within(machine.wait()).await;
    assert_eq!(status.code(), Some(3));
    lab.assert_nothing_left();
}

#[tokio::test]
async fn tells_how_it_ended_itself_if_nobody_else_does() {
    let lab = Lab::new();
    let machine = within(lab.driver().await.boot("m")).await.unwrap();
    let pid = Pid::from_raw(i32::try_from(machine.pid()).unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(within(machine.wait()).await.signal(), Some(15));
    let error = within(machine.connect(Port::Link)).await.err().unwrap();
    assert!(error.to_string().contains("signal 15"), "{error}");
    assert!(machine.pause().await.is_err());
}

#[tokio::test]
async fn a_guest_that_breaks_the_protocol_is_killed() {
    let lab = Lab::new();
    lab.behave("guest-repeats");
    let machine = within(lab.driver().await.boot("m")).await.unwrap();
    let _stream = within(machine.connect(Port::Link)).await.unwrap();
    assert_eq!(within(machine.wait()).await.signal(), Some(9));
}
