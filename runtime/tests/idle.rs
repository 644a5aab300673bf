//! Functions that are awake and idle take little memory, and are none the worse for what is taken from them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nex_runtime::engine::Limits;
use nex_runtime::harness::{Harness, HarnessFunction};
use nex_runtime::v8::{V8Config, V8Engine};

const FUNCTIONS: u64 = 60;

/// What an idle function may take: it is 1,310 KiB now, of which V8's heap has 850. 460 more if its caches were not given back.
const EACH: u64 = 1_500 << 10;

/// Fills all three of V8's stub caches: it reads, writes and defines properties of objects of as many shapes as the payload
/// says, each at one place of the code. Returns a sum that shows whether each access found the right property.
const SHAPES: &str = "\
    class Stamp extends (function (object) { return object }) { stamp = 7 }
    const read = (object) => object.value;
    const write = (object, value) => { object.value = value };
    export default (msg) => {
        const objects = [];
        const shapes = Number(new TextDecoder().decode(msg.data));
        for (let i = 0; i < shapes; i++) {
            const object = {};
            for (let bit = 0; bit < 12; bit++) if (i >> bit & 1) object[`bit${bit}`] = bit;
            object[`own${i}`] = i;
            object.value = 0;
            objects.push(object);
        }
        let sum = 0;
        for (let round = 1; round <= 3; round++) {
            for (let i = 0; i < objects.length; i++) {
                write(objects[i], read(objects[i]) + i);
                new Stamp(objects[i]);
                sum += read(objects[i]) * objects[i].stamp;
            }
        }
        return String(sum);
    }";

async fn assert_right(function: &HarnessFunction, shapes: u64) {
    // Each object's value is added up as i, 2i and 3i, times 7.
    let expected = 7 * 6 * (shapes * (shapes - 1) / 2);
    let reply = function.call("s", shapes.to_string()).await.unwrap();
    assert_eq!(reply.body, expected.to_string(), "{shapes} shapes");
}

fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

/// Waits until no more is resident; how long that takes is no part of what is tested.
async fn wait_for(most: u64, what: &str) {
    let start = Instant::now();
    while resident() > most {
        let now = resident() >> 10;
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "{what}: {now} KiB, not {} at most",
            most >> 10
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn idle_functions_take_little_and_answer_rightly_ever_after() {
    let engine = V8Engine::new(V8Config::default()).unwrap();
    let harness = Harness::with_engine(Arc::new(engine)).limits(Limits {
        hibernate_after: Duration::from_secs(3600),
        instances: 1,
        ..Limits::default()
    });
    // What is made once: V8's threads, compiled code.
    assert_right(&harness.load(SHAPES).await.unwrap(), 500).await;
    let before = resident();
    let mut functions = Vec::new();
    for _ in 0..FUNCTIONS {
        let function = harness.load(SHAPES).await.unwrap();
        assert_right(&function, 20).await;
        functions.push(function);
    }
    wait_for(before + FUNCTIONS * EACH, "idle functions").await;
    // A call writes to what was given back. Garbage is collected meanwhile and after it, and everything given back again.
    for shapes in [500, 1_500] {
        for function in &functions {
            assert_right(function, shapes).await;
        }
        // Less than the caches take: heaps have grown by what was compiled.
        wait_for(resident() - FUNCTIONS * (300 << 10), "functions idle again").await;
    }
    for function in &functions {
        assert_right(function, 300).await;
    }
    // Memory that was given back belongs to others by and by.
    functions.truncate(20);
    for _ in 0..200 {
        assert_right(&harness.load(SHAPES).await.unwrap(), 100).await;
    }
    for function in &functions {
        assert_right(function, 700).await;
    }
}
