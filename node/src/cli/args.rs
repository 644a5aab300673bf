//! Arguments that several commands share: the global flags, `--json`, and values in small notations.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{Args, ValueEnum};

use super::failure::Failure;
use super::keys;
use crate::connection::{self, Connection, ContextChoice, Settings};
use crate::control::subjects;
use crate::duration;
use crate::limits::{Assignment, LimitKey, LimitSet};
use crate::machines::resources::Resources;

const CONNECTION: &str = "Connection";
const LOGGING: &str = "Logging";

/// Flags that every command takes, before or after its name.
#[derive(Debug, Clone, Args)]
pub(super) struct Global {
    /// URLs of the NATS server or cluster, separated by commas [default: nats://127.0.0.1:4222] [env: NATS_URL]
    #[arg(short = 's', long, global = true, value_name = "URL", help_heading = CONNECTION)]
    server: Option<String>,
    /// User name, or a token [env: NATS_USER]
    #[arg(long, global = true, value_name = "USER", help_heading = CONNECTION)]
    user: Option<String>,
    /// Password [env: NATS_PASSWORD]
    #[arg(long, global = true, value_name = "PASSWORD", help_heading = CONNECTION)]
    password: Option<String>,
    /// Credentials file, with a user JWT and its seed [env: NATS_CREDS]
    #[arg(long, global = true, value_name = "FILE", help_heading = CONNECTION)]
    creds: Option<PathBuf>,
    /// File with the seed of a user nkey [env: NATS_NKEY]
    #[arg(long, global = true, value_name = "FILE", help_heading = CONNECTION)]
    nkey: Option<PathBuf>,
    /// TLS certificate of this client [env: NATS_CERT]
    #[arg(long, global = true, value_name = "FILE", help_heading = CONNECTION)]
    tlscert: Option<PathBuf>,
    /// TLS private key of this client [env: NATS_KEY]
    #[arg(long, global = true, value_name = "FILE", help_heading = CONNECTION)]
    tlskey: Option<PathBuf>,
    /// Certificate authorities to trust instead of the system's [env: NATS_CA]
    #[arg(long, global = true, value_name = "FILE", help_heading = CONNECTION)]
    tlsca: Option<PathBuf>,
    /// Do the TLS handshake before the server's greeting [env: NATS_TLSFIRST]
    #[arg(long, global = true, help_heading = CONNECTION)]
    tlsfirst: bool,
    /// Time to wait for the server and for answers, for example 2s or 750ms [default: 2s] [env: NATS_TIMEOUT]
    #[arg(long, global = true, value_name = "DURATION", value_parser = duration::parse, help_heading = CONNECTION)]
    pub(super) timeout: Option<Duration>,
    /// JetStream domain of the object stores that hold artefacts
    #[arg(long, global = true, value_name = "DOMAIN", help_heading = CONNECTION)]
    jsdomain: Option<String>,
    /// Take connection settings from this context of the `nats` command line; flags outrank it
    #[arg(long, global = true, value_name = "NAME", help_heading = CONNECTION, long_help =
        "Take connection settings from this context of the `nats` command line, or from a context file whose path ends \
         in .json; flags outrank it [env: NATS_CONTEXT]")]
    context: Option<String>,
    /// Name of the connection in the server's lists [default: nex-VERSION]
    #[arg(long = "conn-name", alias = "conn_name", global = true, value_name = "NAME", help_heading = CONNECTION)]
    conn_name: Option<String>,
    /// Namespace to work in
    #[arg(long, global = true, value_name = "NAME", env = "NEX_NAMESPACE", default_value = "default", value_parser = name)]
    pub(super) namespace: String,
    /// Least severe messages to show of this program's own log [default: info for `node up`, else warn]
    #[arg(long, global = true, value_name = "LEVEL", env = "NEX_LOGLEVEL", ignore_case = true, help_heading = LOGGING)]
    pub(super) loglevel: Option<Level>,
    /// Write the log as JSON, one object a line
    #[arg(long, global = true, env = "NEX_LOGJSON", value_parser = BoolishValueParser::new(), help_heading = LOGGING)]
    pub(super) logjson: bool,
}

impl Global {
    /// The connection settings, from these flags, the environment and a context.
    pub(super) fn connection(&self) -> Result<Connection, Failure> {
        self.connection_from(|name| std::env::var(name).ok())
    }

    fn connection_from(&self, variable: impl Fn(&str) -> Option<String>) -> Result<Connection, Failure> {
        let context_variable = variable("NATS_CONTEXT").filter(|name| !name.is_empty());
        let context = match (&self.context, &context_variable) {
            (Some(name), _) => ContextChoice::Flag(name),
            (None, Some(name)) => ContextChoice::Environment(name),
            (None, None) => ContextChoice::None,
        };
        Ok(connection::resolve(self.settings(), context, variable)?)
    }

    /// Whether a flag says which server to use.
    pub(super) fn names_a_server(&self) -> bool {
        self.server.is_some() || self.context.is_some()
    }

    fn settings(&self) -> Settings {
        Settings {
            servers: self.server.clone(),
            auth: connection::AuthSettings {
                user: self.user.clone(),
                password: self.password.clone(),
                creds: self.creds.clone(),
                nkey: self.nkey.clone(),
                ..Default::default()
            },
            cert: self.tlscert.clone(),
            key: self.tlskey.clone(),
            ca: self.tlsca.clone(),
            tls_first: self.tlsfirst.then_some(true),
            timeout: self.timeout,
            name: self.conn_name.clone(),
            js_domain: self.jsdomain.clone(),
            inbox_prefix: None,
        }
    }
}

/// Severities of this program's own log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Level {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
    None,
}

impl Level {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
            Self::None => "off",
        }
    }
}

/// How results are written.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct Output {
    /// Write the result as JSON, for programs
    #[arg(long)]
    pub(super) json: bool,
}

/// Where what machines need is kept.
#[derive(Debug, Clone, Args)]
pub(super) struct ResourceDir {
    /// Folder of what machines need [default: $NEX_HOME/resources, in ~/.nex by default] [env: NEX_RESOURCE_DIR]
    #[arg(long, alias = "resource_dir", value_name = "DIR")]
    resource_dir: Option<PathBuf>,
}

impl ResourceDir {
    pub(super) fn resources(&self) -> Result<Resources, Failure> {
        self.or(None)
    }

    /// The folder: that of the flag, else of the configuration, else of the environment, else under the user's home.
    pub(super) fn or(&self, configured: Option<&Path>) -> Result<Resources, Failure> {
        let variable = std::env::var_os("NEX_RESOURCE_DIR").filter(|value| !value.is_empty());
        let chosen = self.resource_dir.clone().or_else(|| configured.map(Path::to_owned));
        let folder = match chosen.or_else(|| variable.map(PathBuf::from)) {
            Some(folder) => folder,
            None => keys::home()?.join("resources"),
        };
        // Programs are started by these paths, some of them in other folders.
        Ok(Resources::new(std::path::absolute(&folder).unwrap_or(folder)))
    }
}

/// What `run` and `devrun` say of a workload alike.
#[derive(Debug, Clone, Args)]
pub(super) struct WorkloadArgs {
    /// Environment of the workload: `env.vars` of a function
    #[arg(value_name = "NAME=VALUE", value_parser = assignment)]
    pub(super) environment: Vec<(String, String)>,
    /// Subject that triggers the function, wildcards allowed; may be given several times
    #[arg(long = "trigger_subject", visible_alias = "trigger-subject", value_name = "SUBJECT")]
    pub(super) trigger_subjects: Vec<String>,
    /// Arguments of a native workload, separated by spaces
    #[arg(long, value_name = "ARGS", allow_hyphen_values = true)]
    pub(super) argv: Option<String>,
    /// Restart a native workload that ends with a status other than 0
    #[arg(long)]
    pub(super) essential: bool,
    /// What the workload is for, for people
    #[arg(long, value_name = "TEXT")]
    pub(super) description: Option<String>,
    #[command(flatten)]
    pub(super) limits: LimitArgs,
}

/// The limits of a workload.
#[derive(Debug, Clone, Args)]
pub(super) struct LimitArgs {
    /// Limit of the workload, for example cpu_time=500ms; may be given several times
    #[arg(long = "limit", value_name = "NAME=VALUE", value_parser = LimitKey::parse_assignment, long_help =
        "Limit of the workload, instead of the default; may be given several times. A node refuses what is beyond the \
         `max_limits` of its configuration.\n\
         Times, like 500ms or 1m30s: cpu_time, wall_time, startup_cpu_time, hibernate_after\n\
         Bytes, like 64MiB or 500kB: heap, buffer, stack, reply\n\
         Numbers: host_calls, timers, log_lines, queue_depth, concurrency, instances")]
    limits: Vec<Assignment>,
}

impl LimitArgs {
    pub(super) fn set(&self) -> LimitSet {
        self.limits.iter().copied().collect()
    }

    /// As if these had been given.
    pub(super) fn of(limits: LimitSet) -> Self {
        Self {
            limits: limits.assignments().collect(),
        }
    }
}

impl WorkloadArgs {
    pub(super) fn argv(&self) -> Vec<String> {
        let words = self.argv.as_deref().unwrap_or_default();
        words.split_whitespace().map(str::to_owned).collect()
    }
}

/// `NAME=VALUE`.
pub(super) fn assignment(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}

/// `Name: value`, as in HTTP.
pub(super) fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once(':') {
        Some((name, value)) if !name.trim().is_empty() => Ok((name.trim().to_owned(), value.trim().to_owned())),
        _ => Err("expected NAME:VALUE".to_owned()),
    }
}

/// What becomes part of subjects: namespaces, node IDs, workload names and IDs.
pub(super) fn name(text: &str) -> Result<String, String> {
    if subjects::is_valid_name(text) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "expected 1 to {} letters, digits, - and _",
            subjects::MAX_NAME_BYTES
        ))
    }
}

/// [`name`], or `*` for all.
pub(super) fn name_or_all(text: &str) -> Result<String, String> {
    if text == "*" { Ok(text.to_owned()) } else { name(text) }
}

/// Reads a file that the user named.
pub(super) fn read_file(what: &str, path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path)
        .map_err(|error| Failure::usage(format_args!("cannot read the {what} {}: {error}", path.display())))
}
