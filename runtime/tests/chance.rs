//! Functions draw random numbers of their own, even where V8 seeds all isolates alike: a virtual machine may have been copied
//! with its blank isolates in it.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::collections::HashSet;
use std::process::Command;
use std::sync::Arc;

use nex_runtime::engine::Engine;
use nex_runtime::harness::Harness;
use nex_runtime::v8::{V8Config, V8Engine};

/// V8's flags, which a process has once.
const FLAGS: &str = "NEX_V8_FLAGS";
const SAME_SEED: &str = "--random-seed=42";

const SOURCE: &str = "() => String([Math.random(), Math.random()])";

#[test]
fn isolates_that_were_seeded_alike_draw_different_numbers() {
    if std::env::var(FLAGS).is_ok_and(|flags| flags == SAME_SEED) {
        return draw();
    }
    // In a process of its own.
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "isolates_that_were_seeded_alike_draw_different_numbers",
            "--nocapture",
        ])
        .env(FLAGS, SAME_SEED)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::main(flavor = "current_thread")]
async fn draw() {
    let config = V8Config {
        pool_size: 4,
        ..V8Config::default()
    };
    let engine = Arc::new(V8Engine::new(config).unwrap());
    engine.ready().await;
    let harness = Harness::with_engine(engine);
    let mut seen = HashSet::new();
    // Those of the pool, and some that are made when they are needed.
    for _ in 0..8 {
        let function = harness.load(SOURCE).await.unwrap();
        let reply = function.call("s", "").await.unwrap();
        for number in std::str::from_utf8(&reply.body).unwrap().split(',') {
            let value: f64 = number.parse().unwrap();
            assert!((0.0..1.0).contains(&value), "{value}");
            assert!(seen.insert(number.to_owned()), "{number} came twice: {seen:?}");
        }
    }
}
