//! Where functions run while they are measured: the benchmarks know stages only, not whether they are this process or a
//! node.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use nex_runtime::engine::Function;

use super::super::failure::Failure;
use crate::bench::Target;

/// An agent takes a little longer to notice that a function is idle than it was told.
pub(super) const HIBERNATION_MARGIN: Duration = Duration::from_millis(500);

/// How a function is to be treated.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Treatment {
    /// Idle time after which it hibernates, instead of the default.
    pub(super) hibernate_after: Option<Duration>,
}

/// Deploys functions, and removes them at the end.
pub(super) trait Stage {
    /// A function on its way.
    type Prepared;
    /// A function that has been deployed.
    type Function;
    /// What asks functions.
    type Target: Target;

    /// Does what comes before the request to run a function.
    async fn prepare(&self, source: Bytes, treatment: Treatment) -> Result<Self::Prepared, Failure>;

    /// Has the function run; when this returns, it has been accepted.
    async fn start(&self, prepared: Self::Prepared) -> Result<Self::Function, Failure>;

    /// What asks these functions, each at the address with its index.
    async fn target(&self, functions: &[Self::Function]) -> Result<Self::Target, Failure>;

    /// Waits until all of these hibernate, which they were told to do after so long.
    async fn asleep(&self, functions: &[Self::Function], after: Duration) -> Result<(), Failure>;

    /// How many of these are awake; `None` if the stage cannot tell.
    fn awake(&self, functions: &[Self::Function]) -> Option<usize>;

    /// Bytes of memory of what runs functions; else why it cannot be known.
    async fn memory(&self) -> Result<u64, String>;

    /// Ends these functions.
    async fn remove(&self, functions: Vec<Self::Function>) -> Result<(), Failure>;

    /// Prepares and starts.
    async fn deploy(&self, source: Bytes, treatment: Treatment) -> Result<Self::Function, Failure> {
        let prepared = self.prepare(source, treatment).await?;
        self.start(prepared).await
    }
}

/// How many of these functions of this process have an instance.
pub(super) fn awake(functions: &[Arc<dyn Function>]) -> Option<usize> {
    functions.iter().try_fold(0, |awake, function| {
        let state = function.state()?;
        Some(awake + usize::from(state.instances > 0))
    })
}
