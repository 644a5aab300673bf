//! Messages of the control interface, with the JSON keys of the original 0.2.7 and 0.3.0-rc1.
//!
//! Clients serialise requests and deserialise responses with serde. The node reads requests member by member
//! ([`DeployRequest::parse`] and its like), because the sender deserves to hear which member was wrong.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::fields::{FieldError, Fields};
use super::location::Location;
use crate::limits::LimitSet;

/// `type` of the envelopes that answer each kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the requests they answer")]
pub enum ResponseType {
    #[serde(rename = "io.nats.nex.v1.auction_response")]
    Auction,
    /// Also answers workload pings.
    #[serde(rename = "io.nats.nex.v1.ping_response")]
    Ping,
    #[serde(rename = "io.nats.nex.v1.info_response")]
    Info,
    #[serde(rename = "io.nats.nex.v1.run_response")]
    Deploy,
    #[serde(rename = "io.nats.nex.v1.stop_response")]
    Stop,
    #[serde(rename = "io.nats.nex.v1.lameduck_response")]
    LameDuck,
}

/// What every response is wrapped in. A failure carries `"data":""` and the text in `error`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Envelope<T> {
    /// What was answered.
    #[serde(rename = "type")]
    pub response_type: ResponseType,
    /// The response; empty text in a failure.
    pub data: T,
    /// What went wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl<T> Envelope<T> {
    /// A success.
    pub fn success(response_type: ResponseType, data: T) -> Self {
        Self {
            response_type,
            data,
            error: None,
        }
    }
}

impl Envelope<&'static str> {
    /// A failure.
    pub fn failure(response_type: ResponseType, error: impl Into<String>) -> Self {
        Self {
            response_type,
            data: "",
            error: Some(error.into()),
        }
    }
}

/// Limits in an answer, by their [keys](crate::limits::LimitKey::key). Whoever reads them may not know them all.
pub type LimitValues = BTreeMap<String, u64>;

/// Whom a client is looking for. Every member that is set must match, else the node stays silent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct AuctionRequest {
    /// Processor architecture, Go's name: `amd64`, `arm64`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arch: Option<String>,
    /// Operating system, Go's name: `linux`, `darwin`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub os: Option<String>,
    /// Whether workloads must run in a sandbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandboxed: Option<bool>,
    /// Tags the node must have, with these values; case does not matter in the values.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// Workload types the node must run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub workload_types: Vec<String>,
    /// Limits the node must allow a workload to have. The original does not know of them and bids all the same.
    #[serde(skip_serializing_if = "LimitSet::is_empty")]
    pub limits: LimitSet,
}

impl AuctionRequest {
    /// Reads a request; an empty message asks for no particular node.
    ///
    /// # Errors
    /// [`FieldError`], naming the member.
    pub fn parse(payload: &[u8]) -> Result<Self, FieldError> {
        if payload.is_empty() {
            return Ok(Self::default());
        }
        let mut fields = Fields::parse(payload)?;
        Ok(Self {
            arch: fields.optional_string("arch")?,
            os: fields.optional_string("os")?,
            sandboxed: fields.optional_bool("sandboxed")?,
            tags: fields.string_map("tags")?,
            workload_types: fields.strings("workload_types")?,
            limits: fields.limits("limits")?,
        })
    }
}

/// Answer to a ping and to an auction.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PingResponse {
    /// Public server key of the node, `N…`.
    pub node_id: String,
    /// Name of the group of nodes it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nexus: Option<String>,
    /// Version of the node.
    pub version: String,
    /// For people, for example `2h3m4s`.
    pub uptime: String,
    /// Public key `X…` to seal a workload's environment for. Not sent by nodes before 0.2.7.
    #[serde(default)]
    pub target_xkey: String,
    /// Tags of the node.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// Workloads it runs, of all namespaces.
    pub running_machines: usize,
}

/// Answer to an auction.
pub type AuctionResponse = PingResponse;

/// Answer to a workload ping.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadPingResponse {
    /// Public server key of the node, `N…`.
    pub node_id: String,
    /// Public key `X…` to seal a workload's environment for.
    #[serde(default)]
    pub target_xkey: String,
    /// Version of the node.
    pub version: String,
    /// Tags of the node.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// For people, for example `2h3m4s`.
    pub uptime: String,
    /// The workloads that matched.
    #[serde(default)]
    pub running_machines: Vec<WorkloadPingMachine>,
}

/// One workload of a [`WorkloadPingResponse`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadPingMachine {
    /// Workload ID.
    pub id: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its type, for example `v8`.
    #[serde(rename = "type")]
    pub workload_type: String,
}

/// Answer to an info request: the node, and the workloads of the namespace asked about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InfoResponse {
    /// Machines ready for a workload.
    #[serde(default)]
    pub available_agents: usize,
    /// Whether the same artefact may run twice in one namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_duplicate_workloads: Option<bool>,
    /// Agents of the namespace, and those that wait for one. Ours.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub agents: Vec<AgentSummary>,
    /// Workloads of the namespace.
    #[serde(default)]
    pub machines: Vec<MachineSummary>,
    /// Limits of workloads that ask for none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: LimitValues,
    /// The most a workload may ask for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub max_limits: LimitValues,
    /// Memory of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryStat>,
    /// Public key `X…` to seal a workload's environment for.
    pub public_xkey: String,
    /// Workload types the node runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub supported_workload_types: Vec<String>,
    /// Tags of the node.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// For people, for example `2h3m4s`.
    pub uptime: String,
    /// Version of the node.
    pub version: String,
}

/// Memory of a host in kB, as `/proc/meminfo` has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are those of /proc/meminfo")]
pub struct MemoryStat {
    pub total: u64,
    pub free: u64,
    pub available: u64,
}

/// One agent in an [`InfoResponse`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AgentSummary {
    /// Its name on the node.
    pub id: String,
    /// Its process.
    pub pid: u32,
    /// `warm`, `serving`, `draining` or `dead`.
    pub state: String,
    /// Whose functions it runs; absent while it is warm.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Functions on it.
    pub functions: usize,
    /// How many of them hibernate.
    pub hibernating: u32,
    /// Instances of the others.
    pub instances: u32,
    /// Calls it has not answered.
    pub in_flight: usize,
    /// Resident memory in bytes; 0 if unknown.
    pub rss_bytes: u64,
    /// What its machine is: `process`, `qemu` or `firecracker`.
    pub driver: String,
    /// Whether its machine is a copy of a template.
    pub restored: bool,
    /// Microseconds until its machine was up.
    pub start_us: u64,
    /// What it and its machine take on the node's host in bytes, its part of shared memory included; 0 if unknown.
    pub host_bytes: u64,
}

/// One running workload in an [`InfoResponse`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSummary {
    /// Workload ID.
    pub id: String,
    /// Whether its calls are being run: its [state](Self::state) is `running` or `hibernating`. The original says true.
    pub healthy: bool,
    /// Ours: `running`; `hibernating`, where that is known; `quarantined`, because it has cost too many agents; `lost`,
    /// because it could not be started again; `disconnected`, while a NATS connection it uses is down.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub state: String,
    /// Ours: why it is not healthy, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// For people, for example `2h3m4s`.
    pub uptime: String,
    /// Its namespace.
    #[serde(default)]
    pub namespace: String,
    /// The workload.
    #[serde(default)]
    pub workload: WorkloadSummary,
}

/// The workload of a [`MachineSummary`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkloadSummary {
    /// Workload ID.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Free text of whoever deployed it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Whether it is restarted when it fails.
    pub essential: bool,
    /// SHA-256 of the artefact, in hexadecimal.
    pub hash: String,
    /// The limits in force. Ours.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: LimitValues,
    /// Execution time of all calls so far, for people: `12ms`.
    pub runtime: String,
    /// For people, for example `2h3m4s`.
    pub uptime: String,
    /// Its type, for example `v8`.
    #[serde(rename = "type")]
    pub workload_type: String,
}

/// Asks a node to run a workload. The members the original needs are always sent; options are left out.
#[derive(Debug, Clone, Serialize)]
pub struct DeployRequest {
    /// Arguments of native workloads.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub argv: Vec<String>,
    /// Free text.
    #[serde(default)]
    pub description: String,
    /// SHA-256 of the artefact in hexadecimal; must equal the signed one.
    pub hash: Option<String>,
    /// Where the artefact lies.
    pub location: Location,
    /// Restart it when it fails; native workloads only.
    pub essential: bool,
    /// The sealed environment: see [`crate::environment`].
    pub environment: String,
    /// ID of this request, a UUID.
    pub id: Option<String>,
    /// JetStream domain of the object store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jsdomain: Option<String>,
    /// Limits it is to have instead of the node's defaults. Ours: the original does not know of them.
    #[serde(skip_serializing_if = "LimitSet::is_empty")]
    pub limits: LimitSet,
    /// Public key `X…` of whoever sealed the environment.
    pub sender_public_key: String,
    /// Public key `N…` of the node this is meant for.
    pub target_node: Option<String>,
    /// Subjects that trigger the function, wildcards allowed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trigger_subjects: Vec<String>,
    /// Connection for host services and triggers, instead of the node's own. 0.2.7 calls it `host_services`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_services_config: Option<NatsConnection>,
    /// Connection for triggers alone; 0.2.7 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trigger_connection: Option<NatsConnection>,
    /// Name of the workload; must equal the signed one. 0.2.7 has it in the claims only.
    pub workload_name: Option<String>,
    /// Signed claims: see [`crate::claims`].
    pub workload_jwt: String,
    /// Workload type, for example `v8`.
    #[serde(rename = "type")]
    pub workload_type: String,
}

impl DeployRequest {
    /// Reads a request in either spelling.
    ///
    /// # Errors
    /// [`FieldError`], naming the member.
    pub fn parse(payload: &[u8]) -> Result<Self, FieldError> {
        let mut fields = Fields::parse(payload)?;
        let host_services_config = match NatsConnection::parse(&mut fields, "host_services_config")? {
            None => NatsConnection::parse(&mut fields, "host_services")?,
            some => some,
        };
        // Counted by the original node when it restarts an essential workload; they mean nothing to us.
        fields.optional_count("retry_count")?;
        fields.optional_string("retried_at")?;
        Ok(Self {
            workload_type: fields.string("type", "a workload type such as \"v8\"")?,
            location: parse_location(&mut fields)?,
            workload_jwt: fields.string("workload_jwt", "the signed claims, a JWT")?,
            environment: fields.string("environment", "the sealed environment in base64")?,
            sender_public_key: fields.string("sender_public_key", "a public xkey (X…)")?,
            argv: fields.strings("argv")?,
            description: fields.optional_string("description")?.unwrap_or_default(),
            hash: fields.optional_string("hash")?,
            essential: fields.optional_bool("essential")?.unwrap_or_default(),
            id: fields.optional_string("id")?,
            jsdomain: fields.optional_string("jsdomain")?,
            limits: fields.limits("limits")?,
            target_node: fields.optional_string("target_node")?,
            trigger_subjects: fields.strings("trigger_subjects")?,
            host_services_config,
            trigger_connection: NatsConnection::parse(&mut fields, "trigger_connection")?,
            workload_name: fields.optional_string("workload_name")?,
        })
    }
}

fn parse_location(fields: &mut Fields) -> Result<Location, FieldError> {
    const FIELD: &str = "location";
    let value = fields.required(FIELD, "a URL nats://BUCKET/key")?;
    Location::from_json(&value).map_err(|error| FieldError::Invalid {
        field: FIELD,
        reason: error.to_string(),
    })
}

/// Answer to a deploy request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeployResponse {
    /// ID of the workload, from now on the way to refer to it.
    pub id: String,
    /// Account key `A…` that signed the request.
    pub issuer: String,
    /// Name of the workload.
    pub name: String,
    /// Always true in a success.
    pub started: bool,
    /// The limits in force, in answer to a request that asked for some; a node that leaves them out has ignored it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: LimitValues,
}

/// Asks a node to stop a workload. Serialises with the keys of both versions of the original.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopRequest {
    /// Public key `N…` of the node; `target_node` in 0.2.7, `node_id` in 0.3.
    pub node_id: Option<String>,
    /// ID of the workload.
    pub workload_id: String,
    /// Claims signed by the issuer that started it.
    pub workload_jwt: String,
}

impl StopRequest {
    /// Reads a request in either spelling.
    ///
    /// # Errors
    /// [`FieldError`], naming the member.
    pub fn parse(payload: &[u8]) -> Result<Self, FieldError> {
        let mut fields = Fields::parse(payload)?;
        let node_id = match fields.optional_string("node_id")? {
            None => fields.optional_string("target_node")?,
            some => some,
        };
        Ok(Self {
            node_id,
            workload_id: fields.string("workload_id", "the ID of a workload")?,
            workload_jwt: fields.string("workload_jwt", "the signed claims, a JWT")?,
        })
    }
}

impl Serialize for StopRequest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Wire<'a> {
            node_id: &'a Option<String>,
            target_node: &'a Option<String>,
            workload_id: &'a str,
            workload_jwt: &'a str,
        }
        Wire {
            node_id: &self.node_id,
            target_node: &self.node_id,
            workload_id: &self.workload_id,
            workload_jwt: &self.workload_jwt,
        }
        .serialize(serializer)
    }
}

/// Answer to a stop request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopResponse {
    /// ID of the workload.
    pub id: String,
    /// Account key `A…` that started and stopped it.
    pub issuer: String,
    /// Name of the workload. Not sent by 0.3 nodes.
    #[serde(default)]
    pub name: String,
    /// Always true in a success.
    pub stopped: bool,
}

/// Answer to a lame duck request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LameDuckResponse {
    /// Public key `N…` of the node.
    pub node_id: String,
    /// Always true in a success.
    pub success: bool,
}

/// A NATS server and a user of it, as requests and node configurations name them. Empty means the node's own.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NatsConnection {
    /// Server URL, or several separated by commas.
    pub nats_url: String,
    /// User JWT.
    pub nats_user_jwt: String,
    /// User seed, `SU…`.
    pub nats_user_seed: String,
}

/// Leaves the secrets out.
impl fmt::Debug for NatsConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsConnection")
            .field("nats_url", &self.nats_url)
            .finish_non_exhaustive()
    }
}

impl NatsConnection {
    /// Whether it says nothing at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn parse(fields: &mut Fields, field: &'static str) -> Result<Option<Self>, FieldError> {
        let Some(mut fields) = fields.object(field)? else {
            return Ok(None);
        };
        let connection = Self {
            nats_url: fields.optional_string("nats_url")?.unwrap_or_default(),
            nats_user_jwt: fields.optional_string("nats_user_jwt")?.unwrap_or_default(),
            nats_user_seed: fields.optional_string("nats_user_seed")?.unwrap_or_default(),
        };
        Ok(Some(connection).filter(|connection| !connection.is_empty()))
    }
}

/// One log line of a workload, on `$NEX.logs.{namespace}.{node}.{name}.{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawLog {
    /// The line.
    pub text: String,
    /// `TRACE`, `DEBUG`, `INFO`, `WARN` or `ERROR`; the original also has `INFO+2` and the like.
    pub level: String,
    /// Workload ID.
    pub id: String,
}
