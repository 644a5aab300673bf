//! What Firecracker's API takes and answers: one type per resource, with Firecracker's own names. Paths are relative to
//! the machine's folder, in which its process runs, so that a snapshot fits any machine.

use serde::{Deserialize, Serialize};

use super::config::{CpuTemplate, HugePages, RateLimiters, TokenBucket};

/// `PUT /machine-config`
#[derive(Debug, Serialize)]
pub(super) struct MachineConfiguration {
    pub(super) vcpu_count: u8,
    pub(super) mem_size_mib: u32,
    pub(super) smt: bool,
    pub(super) track_dirty_pages: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cpu_template: Option<CpuTemplate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) huge_pages: Option<&'static str>,
}

impl HugePages {
    /// Firecracker's name; none for its default.
    pub(super) fn name(self) -> Option<&'static str> {
        match self {
            Self::Off => None,
            Self::Transparent => Some("Transparent"),
            Self::Reserved2m => Some("2M"),
        }
    }
}

/// `PUT /boot-source`
#[derive(Debug, Serialize)]
pub(super) struct BootSource<'a> {
    pub(super) kernel_image_path: &'a str,
    pub(super) initrd_path: &'a str,
    pub(super) boot_args: &'a str,
}

/// `PUT /drives/{drive_id}`
#[derive(Debug, Serialize)]
pub(super) struct Drive<'a> {
    pub(super) drive_id: &'a str,
    pub(super) path_on_host: &'a str,
    pub(super) is_root_device: bool,
    pub(super) is_read_only: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rate_limiter: Option<RateLimiter>,
}

/// Limits of a device.
#[derive(Debug, Serialize)]
pub(super) struct RateLimiter {
    #[serde(skip_serializing_if = "Option::is_none")]
    bandwidth: Option<TokenBucket>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ops: Option<TokenBucket>,
}

impl RateLimiter {
    /// None if nothing is limited.
    pub(super) fn of(limiters: RateLimiters) -> Option<Self> {
        let RateLimiters { bandwidth, iops: ops } = limiters;
        (bandwidth.is_some() || ops.is_some()).then_some(Self { bandwidth, ops })
    }
}

/// `PUT /vsock`
#[derive(Debug, Serialize)]
pub(super) struct Vsock<'a> {
    pub(super) guest_cid: u32,
    pub(super) uds_path: &'a str,
}

/// `PUT /entropy`
#[derive(Debug, Serialize)]
pub(super) struct Entropy {}

/// `PUT /balloon`
#[derive(Debug, Serialize)]
pub(super) struct BalloonDevice {
    pub(super) amount_mib: u32,
    pub(super) deflate_on_oom: bool,
    pub(super) stats_polling_interval_s: u16,
}

/// `PUT /actions`
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(tag = "action_type")]
pub(super) enum Action {
    InstanceStart,
    SendCtrlAltDel,
}

/// `PATCH /vm`
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(tag = "state")]
pub(super) enum Vm {
    Paused,
    Resumed,
}

/// `PUT /snapshot/create`
#[derive(Debug, Serialize)]
pub(super) struct SnapshotCreate<'a> {
    pub(super) snapshot_type: &'a str,
    pub(super) snapshot_path: &'a str,
    pub(super) mem_file_path: &'a str,
}

/// `PUT /snapshot/load`
#[derive(Debug, Serialize)]
pub(super) struct SnapshotLoad<'a> {
    pub(super) snapshot_path: &'a str,
    pub(super) mem_backend: MemoryBackend<'a>,
    pub(super) resume_vm: bool,
}

/// Where a restored machine's memory comes from.
#[derive(Debug, Serialize)]
pub(super) struct MemoryBackend<'a> {
    pub(super) backend_type: &'a str,
    pub(super) backend_path: &'a str,
}

/// `GET /`
#[derive(Debug, Deserialize)]
pub(super) struct InstanceInfo {
    pub(super) id: String,
    pub(super) state: String,
}

/// `GET /balloon/statistics`
#[derive(Debug, Deserialize)]
pub(super) struct BalloonStatistics {
    /// In bytes; the guest may not say.
    pub(super) available_memory: Option<u64>,
}

/// The body of every refusal.
#[derive(Debug, Deserialize)]
pub(super) struct Fault {
    pub(super) fault_message: String,
}
