//! Tells which layers a host gives, by trying.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::plan::{Plan, Purpose};
use super::{ConfineOptions, Ended, Layer, landlock, launcher, seccomp};

/// What `--probe-confinement` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Each layer.
    pub layers: BTreeMap<Layer, LayerReport>,
    /// The version of the kernel's Landlock, if it has it.
    pub landlock_abi: Option<u32>,
}

/// Whether there is a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerReport {
    /// Whether an agent can put it on here.
    pub available: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl From<Result<(), String>> for LayerReport {
    fn from(result: Result<(), String>) -> Self {
        Self {
            available: result.is_ok(),
            reason: result.err(),
        }
    }
}

impl Probe {
    pub(super) fn run(options: &ConfineOptions) -> Self {
        let landlock = landlock::version();
        let layers = Layer::ALL.map(|layer| {
            let result = match layer {
                Layer::Namespaces => namespaces(options),
                Layer::Landlock => landlock.clone().map(drop),
                Layer::Seccomp => seccomp::missing().map_or(Ok(()), Err),
                Layer::Rlimits => Ok(()),
            };
            (layer, result.into())
        });
        Self {
            layers: BTreeMap::from(layers),
            landlock_abi: landlock.ok(),
        }
    }
}

/// Goes all the way up to the start of the agent.
fn namespaces(options: &ConfineOptions) -> Result<(), String> {
    let launched = Plan::new(options, Purpose::Probe).and_then(launcher::launch);
    match launched {
        Ok(Ended::Code(0)) => Ok(()),
        Ok(ended) => Err(format!("the process inside ended unexpectedly: {ended:?}")),
        Err(error) => Err(error.to_string()),
    }
}
