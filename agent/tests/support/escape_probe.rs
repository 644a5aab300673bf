//! Where tests find the agent that tries to break out. The node's tests use it as well.

use std::path::PathBuf;
use std::sync::OnceLock;

/// The program, built if that has not happened: Cargo builds no examples for a single test. `NEX_ESCAPE_PROBE_BIN` names
/// one that was built before, for users who cannot build.
pub(crate) fn escape_probe() -> PathBuf {
    static BIN: OnceLock<PathBuf> = OnceLock::new();
    BIN.get_or_init(|| {
        if let Some(bin) = std::env::var_os("NEX_ESCAPE_PROBE_BIN") {
            return bin.into();
        }
        let status = std::process::Command::new(env!("CARGO"))
            // Of the whole workspace: dependencies that were built for it are not built again with fewer features.
            .args(["build", "--quiet", "--workspace", "--example", "escape_probe"])
            .status()
            .unwrap();
        assert!(status.success(), "the example escape_probe of nex-agent was not built");
        // Beside `deps`, where tests are.
        let tests = std::env::current_exe().unwrap();
        let program = tests.ancestors().nth(2).unwrap().join("examples/escape_probe");
        assert!(program.is_file(), "{} is not there", program.display());
        program
    })
    .clone()
}
