//! Functions draw random numbers of their own, even where V8 seeds all isolates alike: a virtual machine may have been copied
//! with its blank isolates in it.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use deno_core::v8;
use nex_runtime::engine::Engine;
use nex_runtime::harness::Harness;
use nex_runtime::v8::{V8Config, V8Engine};

const POOLED: usize = 4;

static SEEDED: AtomicUsize = AtomicUsize::new(0);

/// What V8 seeds isolates with: the same each time.
fn same_seed(bytes: &mut [u8]) -> bool {
    SEEDED.fetch_add(1, Ordering::Relaxed);
    bytes.fill(42);
    true
}

#[tokio::test]
async fn isolates_that_were_seeded_alike_draw_different_numbers() {
    v8::V8::set_entropy_source(same_seed);
    let config = V8Config {
        pool_size: POOLED,
        ..V8Config::default()
    };
    let engine = Arc::new(V8Engine::new(config).unwrap());
    engine.ready().await;
    assert!(SEEDED.load(Ordering::Relaxed) >= POOLED, "V8 takes our seed");
    let harness = Harness::with_engine(engine);
    let mut seen = HashSet::new();
    // Those of the pool, and some that are made when they are needed.
    for _ in 0..2 * POOLED {
        let function = harness
            .load("() => String([Math.random(), Math.random()])")
            .await
            .unwrap();
        let reply = function.call("s", "").await.unwrap();
        for number in std::str::from_utf8(&reply.body).unwrap().split(',') {
            let value: f64 = number.parse().unwrap();
            assert!((0.0..1.0).contains(&value), "{value}");
            assert!(seen.insert(number.to_owned()), "{number} came twice: {seen:?}");
        }
    }
}
