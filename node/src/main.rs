//! The program `nex`; everything it does is in [`nex_node::cli`].

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    nex_node::cli::main().await
}
