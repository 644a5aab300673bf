//! Connection settings of one source, all optional, and how they are merged and completed.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::{ConnectOptions, ServerAddr};
use nkeys::KeyPair;

use super::{Connection, ConnectionError, DEFAULT_SERVER, DEFAULT_TIMEOUT, Secret, Tls, chain, parse_servers};
use crate::control::location::unescape;
use crate::duration;

/// What one source says. Absent settings are left to the next source.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Comma-separated server URLs.
    pub servers: Option<String>,
    /// Proof of identity; taken from one source as a whole.
    pub auth: AuthSettings,
    /// Certificate of this client.
    pub cert: Option<PathBuf>,
    /// Private key of [`Self::cert`].
    pub key: Option<PathBuf>,
    /// Certificate authorities to trust instead of the system's.
    pub ca: Option<PathBuf>,
    /// Whether the TLS handshake comes before the server's greeting.
    pub tls_first: Option<bool>,
    /// Time to wait for the connection and for each answer.
    pub timeout: Option<Duration>,
    /// Name under which the server lists the connection.
    pub name: Option<String>,
    /// JetStream domain.
    pub js_domain: Option<String>,
    /// Prefix of reply subjects.
    pub inbox_prefix: Option<String>,
}

impl Settings {
    /// Reads the environment variables of the `nats` command line, through a function so that tests need no process
    /// environment. Empty variables count as absent.
    pub(super) fn from_environment(variable: &impl Fn(&str) -> Option<String>) -> Result<Self, ConnectionError> {
        let text = |name: &str| variable(name).filter(|value| !value.is_empty());
        // The `nats` command line says NATS_CERT, the flag here says tlscert; both spellings are in use.
        let path = |short: &str, long: &str| text(short).or_else(|| text(long)).map(PathBuf::from);
        let timeout = text("NATS_TIMEOUT")
            .map(|value| duration::parse(&value))
            .transpose()
            .map_err(|error| ConnectionError::Setting(format!("NATS_TIMEOUT: {error}")))?;
        let tls_first = text("NATS_TLSFIRST")
            .map(|value| match value.to_ascii_lowercase().as_str() {
                "1" | "true" | "yes" | "on" => Ok(true),
                "0" | "false" | "no" | "off" => Ok(false),
                _ => Err(ConnectionError::Setting(format!(
                    "NATS_TLSFIRST: `{value}` is neither `true` nor `false`"
                ))),
            })
            .transpose()?;
        Ok(Self {
            servers: text("NATS_URL"),
            auth: AuthSettings {
                user: text("NATS_USER"),
                password: text("NATS_PASSWORD"),
                creds: text("NATS_CREDS").map(PathBuf::from),
                nkey: text("NATS_NKEY").map(PathBuf::from),
                ..AuthSettings::default()
            },
            cert: path("NATS_CERT", "NATS_TLSCERT"),
            key: path("NATS_KEY", "NATS_TLSKEY"),
            ca: path("NATS_CA", "NATS_TLSCA"),
            tls_first,
            timeout,
            ..Self::default()
        })
    }

    /// These settings, and where they are silent, those of a weaker source.
    #[must_use]
    pub(super) fn over(self, weaker: Self) -> Self {
        // A certificate belongs to its key: never one from here and the other from there.
        let (cert, key) = if self.cert.is_some() || self.key.is_some() {
            (self.cert, self.key)
        } else {
            (weaker.cert, weaker.key)
        };
        // Credentials in a URL are meant for that server: no weaker source replaces them.
        let in_url = self.servers.as_deref().is_some_and(|urls| urls.contains('@'));
        let auth = if self.auth.is_empty() && !in_url {
            weaker.auth
        } else {
            self.auth
        };
        Self {
            servers: self.servers.or(weaker.servers),
            auth,
            cert,
            key,
            ca: self.ca.or(weaker.ca),
            tls_first: self.tls_first.or(weaker.tls_first),
            timeout: self.timeout.or(weaker.timeout),
            name: self.name.or(weaker.name),
            js_domain: self.js_domain.or(weaker.js_domain),
            inbox_prefix: self.inbox_prefix.or(weaker.inbox_prefix),
        }
    }

    /// Like [`Self::over`], but halves of a pair may come from both sides: `--user` with `NATS_PASSWORD`, `--tlscert`
    /// with `NATS_KEY`.
    #[must_use]
    pub(super) fn completed_by(mut self, weaker: Self) -> Self {
        if self.auth.is_half_password() {
            self.auth.user = self.auth.user.or_else(|| weaker.auth.user.clone());
            self.auth.password = self.auth.password.or_else(|| weaker.auth.password.clone());
        }
        if self.cert.is_some() != self.key.is_some() {
            self.cert = self.cert.or_else(|| weaker.cert.clone());
            self.key = self.key.or_else(|| weaker.key.clone());
        }
        self.over(weaker)
    }

    /// Fills in the defaults and checks that the settings fit together.
    pub(super) fn finish(self) -> Result<Connection, ConnectionError> {
        let certificate = match (self.cert, self.key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            (Some(_), None) => {
                return Err(ConnectionError::Setting(
                    "a TLS certificate needs its private key: give --tlskey as well".into(),
                ));
            }
            (None, Some(_)) => {
                return Err(ConnectionError::Setting(
                    "a TLS private key needs its certificate: give --tlscert as well".into(),
                ));
            }
        };
        let servers = parse_servers(self.servers.as_deref().unwrap_or(DEFAULT_SERVER))?;
        let auth = match self.auth.choose()? {
            Auth::None => servers.iter().find_map(Auth::in_url).unwrap_or(Auth::None),
            auth => auth,
        };
        Ok(Connection {
            servers,
            auth,
            tls: Tls {
                certificate,
                ca: self.ca,
                first: self.tls_first.unwrap_or(false),
            },
            timeout: self.timeout.unwrap_or(DEFAULT_TIMEOUT),
            name: self
                .name
                .unwrap_or_else(|| concat!("nex-", env!("CARGO_PKG_VERSION")).to_owned()),
            js_domain: self.js_domain,
            inbox_prefix: self.inbox_prefix,
        })
    }
}

/// The ways one source may prove who we are.
#[derive(Clone, Default)]
pub struct AuthSettings {
    /// User name, or a token if there is no password.
    pub user: Option<String>,
    /// Password.
    pub password: Option<String>,
    /// Token.
    pub token: Option<String>,
    /// Credentials file: JWT and seed.
    pub creds: Option<PathBuf>,
    /// File with the seed of a user nkey.
    pub nkey: Option<PathBuf>,
    /// User JWT, to go with a seed.
    pub jwt: Option<String>,
    /// Seed, to go with the JWT.
    pub seed: Option<String>,
}

impl fmt::Debug for AuthSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthSettings")
            .field("user", &self.user.as_ref().map(|_| Secret))
            .field("password", &self.password.as_ref().map(|_| Secret))
            .field("token", &self.token.as_ref().map(|_| Secret))
            .field("creds", &self.creds)
            .field("nkey", &self.nkey)
            .field("jwt", &self.jwt.as_ref().map(|_| Secret))
            .field("seed", &self.seed.as_ref().map(|_| Secret))
            .finish()
    }
}

impl AuthSettings {
    fn is_empty(&self) -> bool {
        self.user.is_none()
            && self.password.is_none()
            && self.token.is_none()
            && self.creds.is_none()
            && self.nkey.is_none()
            && self.jwt.is_none()
    }

    fn is_half_password(&self) -> bool {
        self.user.is_some() != self.password.is_some() && self.creds.is_none() && self.nkey.is_none()
    }

    /// The strongest way that is complete.
    fn choose(self) -> Result<Auth, ConnectionError> {
        if let Some(path) = self.creds {
            return Ok(Auth::Credentials(path));
        }
        if let Some(jwt) = self.jwt {
            let seed = match (self.seed, self.nkey) {
                (Some(seed), _) => seed,
                (None, Some(path)) => read_seed(&path)?,
                (None, None) => {
                    return Err(ConnectionError::Setting(
                        "the context has a user JWT but no seed: expected `user_seed` or `nkey`".into(),
                    ));
                }
            };
            return Ok(Auth::Jwt { jwt, seed });
        }
        if let Some(path) = self.nkey {
            return Ok(Auth::Nkey(path));
        }
        match (self.user, self.password, self.token) {
            (Some(user), Some(password), _) => Ok(Auth::Password { user, password }),
            (None, Some(_), _) => Err(ConnectionError::Setting(
                "a password needs a user name: give --user as well".into(),
            )),
            (_, None, Some(token)) | (Some(token), None, None) => Ok(Auth::Token(token)),
            (None, None, None) => Ok(Auth::None),
        }
    }
}

/// How to prove who we are.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Auth {
    /// Not at all.
    None,
    /// User name and password.
    #[allow(missing_docs, reason = "the names say it")]
    Password { user: String, password: String },
    /// Token.
    Token(String),
    /// Credentials file with JWT and seed.
    Credentials(PathBuf),
    /// File with the seed of a user nkey.
    Nkey(PathBuf),
    /// JWT and seed.
    #[allow(missing_docs, reason = "the names say it")]
    Jwt { jwt: String, seed: String },
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Password { user, .. } => f
                .debug_struct("Password")
                .field("user", user)
                .field("password", &Secret)
                .finish(),
            Self::Token(_) => f.debug_tuple("Token").field(&Secret).finish(),
            Self::Credentials(path) => f.debug_tuple("Credentials").field(path).finish(),
            Self::Nkey(path) => f.debug_tuple("Nkey").field(path).finish(),
            Self::Jwt { .. } => f.debug_tuple("Jwt").field(&Secret).finish(),
        }
    }
}

impl Auth {
    /// What a server's URL says: `nats://user:password@host` or `nats://token@host`. The client itself ignores it.
    fn in_url(server: &ServerAddr) -> Option<Self> {
        let plain = |text: &str| unescape(text).unwrap_or_else(|_| text.to_owned());
        let user = plain(server.username()?);
        Some(match server.password() {
            Some(password) => Self::Password {
                user,
                password: plain(password),
            },
            None => Self::Token(user),
        })
    }

    pub(super) fn apply(&self, options: ConnectOptions) -> Result<ConnectOptions, ConnectionError> {
        Ok(match self {
            Self::None => options,
            Self::Password { user, password } => options.user_and_password(user.clone(), password.clone()),
            Self::Token(token) => options.token(token.clone()),
            Self::Credentials(path) => {
                let what = "credentials file";
                options
                    .credentials(&read(what, path)?)
                    .map_err(|error| unusable(what, path, &error))?
            }
            Self::Nkey(path) => options.nkey(read_seed(path)?),
            Self::Jwt { jwt, seed } => {
                let key = KeyPair::from_seed(seed)
                    .map_err(|error| ConnectionError::Setting(format!("the seed of the user JWT: {error}")))?;
                let key = std::sync::Arc::new(key);
                options.jwt(jwt.clone(), move |nonce| {
                    let key = key.clone();
                    async move { key.sign(&nonce).map_err(async_nats::AuthError::new) }
                })
            }
        })
    }
}

/// The seed in an nkey file: its first line that begins like one. Other lines are comments.
fn read_seed(path: &Path) -> Result<String, ConnectionError> {
    let what = "nkey file";
    let content = read(what, path)?;
    let seed = content
        .lines()
        .map(str::trim)
        .find(|line| line.starts_with("SU"))
        .ok_or_else(|| ConnectionError::File {
            what,
            path: path.to_owned(),
            reason: "it has no line with the seed of a user key (SU…)".into(),
        })?;
    KeyPair::from_seed(seed).map_err(|error| unusable(what, path, &error))?;
    Ok(seed.to_owned())
}

pub(super) fn read(what: &'static str, path: &Path) -> Result<String, ConnectionError> {
    std::fs::read_to_string(path).map_err(|error| unusable(what, path, &error))
}

fn unusable(what: &'static str, path: &Path, error: &dyn std::error::Error) -> ConnectionError {
    ConnectionError::File {
        what,
        path: path.to_owned(),
        reason: chain(error),
    }
}
