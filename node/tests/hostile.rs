//! Hostile functions in one agent process with twenty functions that do their work under steady load. Whatever the code
//! does, its callers are answered with the limit it hit, its node hears of it, it answers its next call, and its
//! neighbours lose nothing: not a call, not a reply.
//!
//! The attacks are in `fixtures/js/hostile`; `expected` says how each must end. No time is asserted. What was measured is
//! printed, and appended to the file that `NEX_HOSTILE_REPORT` names. `NEX_HOSTILE_ONLY` chooses attacks by the beginning
//! of their name, for example `unstoppable/locales`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    unreachable_pub,
    reason = "tests fail by panicking; their modules are shared by path"
)]

#[path = "hostile/attack.rs"]
mod attack;
#[path = "hostile/bench.rs"]
mod bench;
#[path = "agents/binary.rs"]
mod binary;
#[path = "hostile/expected.rs"]
mod expected;
#[path = "hostile/host.rs"]
mod host;
#[path = "hostile/load.rs"]
mod load;
#[path = "hostile/report.rs"]
mod report;
#[path = "hostile/suite.rs"]
mod suite;

use self::suite::{Agents, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn code_that_does_not_end_is_stopped_at_its_limit() {
    run(
        "stopped",
        Agents::OfProduction,
        &["endless.js", "called_back.js", "wasm.js"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_top_level_that_does_not_end_does_not_load() {
    run("not loaded", Agents::OfProduction, &["top_level.js", "top_level.mjs"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_limited_whatever_it_is_made_of() {
    run(
        "memory",
        Agents::OfProduction,
        &["heap.js", "buffers.js", "recursion.js"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_are_dammed_and_their_functions_go_on() {
    run("floods", Agents::OfProduction, &["floods.js"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn code_that_cannot_be_stopped_costs_its_agent_and_no_neighbour() {
    run("condemned", Agents::OfProduction, &["unstoppable.js", "gives_up.js"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loop_that_default_flags_cannot_stop_is_condemned() {
    run("default flags", Agents::WithDefaultFlags, &["default_flags.js"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_v8_ends_the_process_everybody_is_answered() {
    run("aborted", Agents::WithNatives, &["aborts.js"]).await;
}
