//! How the command line and the node reach NATS: where the settings come from, and one connection made from them.
//!
//! Settings have three sources: flags, environment variables and a context file of the `nats` command line. They are
//! merged in one place, [`resolve`], which has their order of precedence.

mod context;
mod settings;
mod tls;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use async_nats::{Client, ConnectErrorKind, ConnectOptions, ServerAddr, jetstream};

pub use self::settings::{Auth, AuthSettings, Settings};
pub use self::tls::Tls;

/// Where a server is looked for when nothing says otherwise.
pub const DEFAULT_SERVER: &str = "nats://127.0.0.1:4222";

/// How long to wait for the connection and for each answer when nothing says otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(2);

/// Name and origin of the context to read, if one is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContextChoice<'a> {
    /// Named by a flag: it outranks environment variables, which may be left over from another session.
    Flag(&'a str),
    /// Named by an environment variable: other environment variables refine it.
    Environment(&'a str),
    /// None.
    None,
}

/// Merges the sources: flags, then a context named by a flag, then the environment, then a context named there.
///
/// # Errors
/// A context that cannot be read or holds what this program does not support, a variable that does not parse, and
/// settings that do not make sense together.
pub fn resolve(
    flags: Settings,
    context: ContextChoice<'_>,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Connection, ConnectionError> {
    let environment = Settings::from_environment(&variable)?;
    let merged = match context {
        ContextChoice::Flag(name) => flags.over(context::load(name, &variable)?).over(environment),
        ContextChoice::Environment(name) => flags.completed_by(environment).over(context::load(name, &variable)?),
        ContextChoice::None => flags.completed_by(environment),
    };
    merged.finish()
}

/// Everything needed to connect.
#[derive(Debug, Clone)]
pub struct Connection {
    servers: Vec<ServerAddr>,
    /// Proof of identity.
    pub auth: Auth,
    /// TLS settings.
    pub tls: Tls,
    /// Time to wait for the connection and for each answer.
    pub timeout: Duration,
    /// Name under which the server lists the connection.
    pub name: String,
    /// JetStream domain, if not the server's own.
    pub js_domain: Option<String>,
    /// Prefix of reply subjects, for accounts that may not use `_INBOX`.
    pub inbox_prefix: Option<String>,
}

impl Connection {
    /// A connection to one server without authentication, for a server this process has started itself.
    ///
    /// # Errors
    /// [`ConnectionError::Server`] for a malformed URL.
    pub fn to(url: &str, name: &str) -> Result<Self, ConnectionError> {
        Settings {
            servers: Some(url.to_owned()),
            name: Some(name.to_owned()),
            ..Settings::default()
        }
        .finish()
    }

    /// The servers, without the credentials their URLs may hold; for messages.
    #[must_use]
    pub fn servers(&self) -> String {
        let shown: Vec<String> = self.servers.iter().map(shown).collect();
        shown.join(", ")
    }

    /// Connects and waits until the server has accepted the connection.
    ///
    /// The connection repairs itself later on: the timeout bounds the first attempt only.
    ///
    /// # Errors
    /// Unreadable key files, and everything that keeps the server from accepting the connection in time.
    pub async fn connect(&self) -> Result<Client, ConnectionError> {
        // With more than one TLS provider compiled in, rustls wants the choice made. A second call changes nothing.
        _ = rustls::crypto::ring::default_provider().install_default();
        let options = self.options()?;
        let attempt = options.connect(self.servers.clone());
        match tokio::time::timeout(self.timeout, attempt).await {
            Ok(Ok(client)) => Ok(client),
            Ok(Err(error)) if error.kind() == ConnectErrorKind::TimedOut => Err(self.timed_out()),
            Ok(Err(error)) => Err(ConnectionError::Refused {
                servers: self.servers(),
                reason: match error.kind() {
                    // Its cause says the same again.
                    kind @ ConnectErrorKind::AuthorizationViolation => kind.to_string(),
                    _ => self.tls.diagnose(&error).unwrap_or_else(|| chain(&error)),
                },
            }),
            Err(_) => Err(self.timed_out()),
        }
    }

    /// JetStream on this connection, in the configured domain.
    #[must_use]
    pub fn jetstream(&self, client: Client) -> jetstream::Context {
        match &self.js_domain {
            Some(domain) => jetstream::with_domain(client, domain),
            None => jetstream::new(client),
        }
    }

    fn timed_out(&self) -> ConnectionError {
        ConnectionError::TimedOut {
            servers: self.servers(),
            timeout: self.timeout,
        }
    }

    fn options(&self) -> Result<ConnectOptions, ConnectionError> {
        let mut options = ConnectOptions::new()
            .name(&self.name)
            .connection_timeout(self.timeout)
            .request_timeout(Some(self.timeout));
        options = self.auth.apply(options)?;
        options = self.tls.apply(options)?;
        if let Some(prefix) = &self.inbox_prefix {
            options = options.custom_inbox_prefix(prefix);
        }
        Ok(options)
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// A server URL does not parse.
    #[error("`{url}` is not a server URL ({reason}); expected something like {DEFAULT_SERVER}")]
    Server {
        /// The URL as given, without credentials.
        url: String,
        /// What the parser said.
        reason: String,
    },
    /// A setting has the wrong form, or two do not fit together.
    #[error("{0}")]
    Setting(String),
    /// A file named by a setting cannot be used.
    #[error("cannot use the {what} {}: {reason}", path.display())]
    File {
        /// What the file is for.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Nothing answered in time.
    #[error("no NATS server answered at {servers} within {timeout:?}")]
    TimedOut {
        /// Where it was looked for.
        servers: String,
        /// For how long.
        timeout: Duration,
    },
    /// The connection was refused, by the network or by the server.
    #[error("cannot connect to the NATS server at {servers}: {reason}")]
    Refused {
        /// Where it was looked for.
        servers: String,
        /// Why.
        reason: String,
    },
}

impl ConnectionError {
    /// Whether the fault lies with the settings, not with the network or the server.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Server { .. } | Self::Setting(_) | Self::File { .. })
    }
}

/// Parses a comma-separated list of server URLs.
fn parse_servers(list: &str) -> Result<Vec<ServerAddr>, ConnectionError> {
    let parse = |url: &str| {
        ServerAddr::from_str(url).map_err(|error| ConnectionError::Server {
            // What does not parse may still hold a password.
            url: url.rsplit_once('@').map_or(url, |(_, host)| host).to_owned(),
            reason: error.to_string(),
        })
    };
    let servers: Vec<ServerAddr> = list
        .split(',')
        .map(str::trim)
        .filter(|url| !url.is_empty())
        .map(parse)
        .collect::<Result<_, _>>()?;
    if servers.is_empty() {
        return Err(ConnectionError::Setting(format!(
            "the server URL is empty; expected something like {DEFAULT_SERVER}"
        )));
    }
    Ok(servers)
}

fn shown(server: &ServerAddr) -> String {
    let (scheme, host, port) = (server.scheme(), server.host(), server.port());
    if host.contains(':') {
        format!("{scheme}://[{host}]:{port}")
    } else {
        format!("{scheme}://{host}:{port}")
    }
}

/// An error with its causes in one line, without repeating what an outer error already says.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// A value that is not to be shown.
pub(crate) struct Secret;

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

#[cfg(test)]
mod tests;
