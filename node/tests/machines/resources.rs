//! What `cargo xtask test` has set up for virtual machines.

use nex_node::machines::resources::Resources;

/// The folder with kernel and image.
pub fn resources() -> Resources {
    let folder = std::env::var_os("NEX_RESOURCE_DIR");
    Resources::new(folder.expect("NEX_RESOURCE_DIR names what `nex preflight --driver qemu` has set up"))
}
