//! Where the tests of the agent pool find the agent.

use std::path::PathBuf;
use std::sync::OnceLock;

/// The agent's binary, built if that has not happened: Cargo builds no binaries of other packages for a test.
pub fn agent_bin() -> PathBuf {
    static BIN: OnceLock<PathBuf> = OnceLock::new();
    BIN.get_or_init(|| {
        if let Some(bin) = std::env::var_os("NEX_AGENT_BIN") {
            return bin.into();
        }
        let status = std::process::Command::new(env!("CARGO"))
            // Of the whole workspace: dependencies that were built for it are not built again with fewer features.
            .args(["build", "--quiet", "--workspace", "--bin", "nex-agent"])
            .status()
            .unwrap();
        assert!(status.success(), "nex-agent was not built");
        nex_node::agents::find_agent_bin().unwrap()
    })
    .clone()
}
