//! Makes the start-up snapshot: V8's heap after deno_core and our bootstrap JavaScript have run, so that a new isolate
//! need not run them again. Compiles the very files that define the ops, because a snapshot fits only those.

#![allow(dead_code, reason = "the shared files hold more than the snapshot needs")]
#![allow(unreachable_pub, reason = "the shared files are public modules of the crate")]

use std::cell::RefCell;
use std::error::Error;
use std::path::PathBuf;
use std::rc::Rc;

use deno_core::snapshot::{CreateSnapshotOptions, create_snapshot};

#[path = "src/v8/buffers.rs"]
mod buffers;
#[path = "src/v8/convert.rs"]
mod convert;
#[path = "src/engine.rs"]
mod engine;
#[path = "src/v8/host_calls.rs"]
mod host_calls;
#[path = "src/host_services.rs"]
mod host_services;
#[path = "src/invocation.rs"]
mod invocation;
#[path = "src/logs.rs"]
mod logs;
#[path = "src/v8/ops.rs"]
mod ops;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=src/v8");
    let failure = Rc::new(RefCell::new(None));
    let warm_up_failure = Rc::clone(&failure);
    let snapshot = create_snapshot(
        CreateSnapshotOptions {
            cargo_manifest_dir: env!("CARGO_MANIFEST_DIR"),
            startup_snapshot: None,
            skip_op_registration: false,
            extensions: vec![ops::nex::init()],
            extension_transpiler: None,
            with_runtime_cb: Some(Box::new(move |js| {
                let warm_up = js.execute_script("ext:nex/warm_up.js", include_str!("src/v8/js/warm_up.js"));
                *warm_up_failure.borrow_mut() = warm_up.err();
            })),
        },
        None,
    )?;
    if let Some(error) = failure.take() {
        return Err(error.into());
    }
    let path = PathBuf::from(std::env::var("OUT_DIR")?).join("startup_snapshot.bin");
    std::fs::write(path, snapshot.output)?;
    Ok(())
}
