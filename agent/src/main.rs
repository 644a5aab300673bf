//! `nex-agent`: runs functions on V8 for a nex node.

use std::sync::Arc;

use clap::Parser;
use nex_agent::process::{Options, run};
use nex_runtime::engine::Engine;
use nex_runtime::v8::{V8Config, V8Engine};

/// Runs functions for a nex node, which starts it; not meant to be started by hand.
#[derive(Debug, Parser)]
#[command(name = "nex-agent", version)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    engine: EngineArguments,
}

/// What a node has for the engine of its agents; each goes by the name of a key in the node's configuration.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Engine")]
struct EngineArguments {
    /// Blank isolates kept ready
    #[arg(long, value_name = "N", default_value_t = V8Config::default().pool_size)]
    isolate_pool_size: usize,
    /// JavaScript heap of the pooled isolates; functions with a lower heap limit get isolates of their own
    #[arg(long, value_name = "BYTES", default_value_t = V8Config::default().heap_bytes)]
    heap_bytes: u64,
    /// Stack of the pooled isolates; functions with a higher stack limit get isolates of their own
    #[arg(long, value_name = "BYTES", default_value_t = V8Config::default().stack_bytes)]
    stack_bytes: u32,
    /// Compiled code kept for functions that are started again; 0 keeps none
    #[arg(long, value_name = "BYTES", default_value_t = V8Config::default().code_cache_bytes)]
    code_cache_bytes: u64,
    /// Resident memory of the process above which functions hibernate before their time [default: none]
    #[arg(long, value_name = "BYTES")]
    memory_high_bytes: Option<u64>,
    /// Lets the kernel merge pages that are alike, if it is set up to (`/sys/kernel/mm/ksm/run`)
    #[arg(long)]
    merge_memory: bool,
    /// Instances awake at a time, of all functions together
    #[arg(long, value_name = "N", default_value_t = V8Config::default().max_instances)]
    max_instances: usize,
}

impl From<EngineArguments> for V8Config {
    fn from(arguments: EngineArguments) -> Self {
        Self {
            pool_size: arguments.isolate_pool_size,
            heap_bytes: arguments.heap_bytes,
            stack_bytes: arguments.stack_bytes,
            code_cache_bytes: arguments.code_cache_bytes,
            memory_high_bytes: arguments.memory_high_bytes,
            merge_memory: arguments.merge_memory,
            max_instances: arguments.max_instances,
        }
    }
}

fn main() {
    let Arguments { options, engine } = Arguments::parse();
    run(&options, || {
        V8Engine::new(engine.into()).map(|engine| Arc::new(engine) as Arc<dyn Engine>)
    })
}
