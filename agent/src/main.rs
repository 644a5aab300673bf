//! `nex-agent`: runs functions on V8 for a nex node.

use std::sync::Arc;

use clap::Parser;
use nex_agent::process::{Options, run};
use nex_runtime::engine::Engine;
use nex_runtime::v8::{V8Config, V8Engine};

fn main() {
    run(&Options::parse(), || {
        V8Engine::new(V8Config::default()).map(|engine| Arc::new(engine) as Arc<dyn Engine>)
    })
}
