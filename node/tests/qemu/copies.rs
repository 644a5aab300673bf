//! Templates, and the machines that are copies of one.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nex_node::machines::{MachineDriver, Port};

use crate::escape_probe::within;
use crate::lab::Lab;

/// What a copy's clock may be off: the host's time is under way to the guest while others use the processor.
const TOLERANCE: Duration = Duration::from_secs(2);

/// Age of a template whose copies do not know what time it is unless they are told.
const OLD: Duration = Duration::from_secs(4);

const TIME_AND_NUMBERS: &str = "() => JSON.stringify([Date.now(), ...Array.from({ length: 8 }, () => Math.random())])";

#[tokio::test]
async fn copies_have_the_right_time_and_random_numbers_of_their_own() {
    let lab = Lab::new().await;
    let template = lab.template().await;
    tokio::time::sleep(OLD).await;
    let mut seen = HashSet::new();
    for id in ["one", "other"] {
        let mut copy = lab.restore(&template, id).await;
        let before = since_1970();
        let answer = copy.ask(TIME_AND_NUMBERS).await;
        let after = since_1970();
        let mut numbers: Vec<f64> = serde_json::from_str(&answer).unwrap();
        let time = Duration::from_secs_f64(numbers.remove(0) / 1000.0);
        assert!(
            time + TOLERANCE >= before && time <= after + TOLERANCE,
            "{id}: {time:?} is not between {before:?} and {after:?}"
        );
        assert_eq!(numbers.len(), 8);
        for number in numbers {
            assert!(
                seen.insert(number.to_bits()),
                "{id} draws {number}, which was drawn before"
            );
        }
        copy.end().await;
    }
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

#[tokio::test]
async fn a_damaged_template_is_thrown_away_and_made_anew() {
    let lab = Lab::new().await;
    let machines = lab.source();
    assert!(machines.start("first").await.unwrap().start().restored);
    let template = lab
        .path("templates")
        .join(lab.driver.templating().unwrap().template_key());
    let memory = File::options().write(true).open(template.join("memory")).unwrap();
    memory.write_all_at(b"damaged", 1 << 20).unwrap();

    let booted = machines.start("second").await.unwrap();
    assert!(!booted.start().restored, "what is damaged is not restored");
    assert!(!template.exists());
    let stream = within(booted.connect(Port::Link)).await;
    assert!(stream.is_ok(), "the machine is of use all the same");
    assert!(machines.start("third").await.unwrap().start().restored);
}

#[tokio::test]
async fn no_template_is_taken_of_a_machine_that_was_connected() {
    let lab = Lab::new().await;
    let mut inmate = lab.boot("one").await;
    let folder = lab.path("template");
    std::fs::create_dir(&folder).unwrap();
    let taken = lab
        .driver
        .templating()
        .unwrap()
        .take(inmate.machine.clone(), &folder)
        .await;
    let error = taken.unwrap_err().to_string();
    assert!(error.contains("connected"), "{error}");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
    assert_eq!(inmate.ask("() => 'still here'").await, "still here");
}
