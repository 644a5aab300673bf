//! What functions may rely on, whatever is behind the seam: every case runs in memory and on NATS.

mod kv;
mod messaging;
mod objects;

/// Runs every case of a module in each world.
macro_rules! in_every_world {
    ($cases:ident: $($case:ident)*) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::$cases::$case(crate::world::World::memory()).await;
            })*
        }
        mod nats {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::$cases::$case(crate::world::World::nats()).await;
            })*
        }
    };
}
use in_every_world;
