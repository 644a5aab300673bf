//! Context files of the `nats` command line: `~/.config/nats/context/NAME.json`, written by `nats context add`.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::settings::{AuthSettings, Settings};
use super::{ConnectionError, chain};

/// The keys of a context file that bear on a connection. Others, such as colours, are left alone.
#[derive(Deserialize, Default)]
#[serde(default)]
struct ContextFile {
    url: String,
    token: String,
    user: String,
    password: String,
    creds: String,
    nkey: String,
    user_jwt: String,
    user_seed: String,
    cert: String,
    key: String,
    ca: String,
    nsc: String,
    socks_proxy: String,
    jetstream_domain: String,
    inbox_prefix: String,
    tls_first: bool,
}

/// Reads the context of this name; a name that ends in `.json` is a path.
pub(super) fn load(name: &str, variable: &impl Fn(&str) -> Option<String>) -> Result<Settings, ConnectionError> {
    let home = variable("HOME").filter(|home| !home.is_empty());
    let path = path_of(name, home.as_deref(), variable)?;
    let content = std::fs::read(&path).map_err(|error| {
        if error.kind() == std::io::ErrorKind::NotFound {
            ConnectionError::Setting(format!(
                "there is no NATS context `{name}`: expected the file {}, which `nats context add {name}` makes",
                path.display()
            ))
        } else {
            unusable(&path, chain(&error))
        }
    })?;
    let file: ContextFile = serde_json::from_slice(&content).map_err(|error| unusable(&path, error.to_string()))?;
    // Connecting without what the context asks for would be connecting as someone else, or by another way.
    for (key, value) in [("nsc", &file.nsc), ("socks_proxy", &file.socks_proxy)] {
        if !value.is_empty() {
            return Err(unusable(&path, format!("`{key}` is not supported")));
        }
    }
    let text = |value: String| (!value.is_empty()).then_some(value);
    let file_path = |value: String| -> Result<Option<PathBuf>, ConnectionError> {
        match text(value) {
            None => Ok(None),
            Some(value) if value.contains("://") => {
                Err(unusable(&path, format!("`{value}`: only files are supported here")))
            }
            Some(value) => Ok(Some(expand(&value, home.as_deref()))),
        }
    };
    Ok(Settings {
        servers: text(file.url),
        auth: AuthSettings {
            user: text(file.user),
            password: text(file.password),
            token: text(file.token),
            creds: file_path(file.creds)?,
            nkey: file_path(file.nkey)?,
            jwt: text(file.user_jwt),
            seed: text(file.user_seed),
        },
        cert: file_path(file.cert)?,
        key: file_path(file.key)?,
        ca: file_path(file.ca)?,
        tls_first: file.tls_first.then_some(true),
        timeout: None,
        name: None,
        js_domain: text(file.jetstream_domain),
        inbox_prefix: text(file.inbox_prefix),
    })
}

fn path_of(
    name: &str,
    home: Option<&str>,
    variable: &impl Fn(&str) -> Option<String>,
) -> Result<PathBuf, ConnectionError> {
    if name.ends_with(".json") {
        return Ok(expand(name, home));
    }
    if name.is_empty() || name.contains("..") || name.contains(std::path::MAIN_SEPARATOR) {
        return Err(ConnectionError::Setting(format!(
            "`{name}` is not the name of a NATS context; expected a name, or a path that ends in .json"
        )));
    }
    let parent = variable("XDG_CONFIG_HOME")
        .filter(|parent| !parent.is_empty())
        .map(PathBuf::from)
        .or_else(|| home.map(|home| Path::new(home).join(".config")))
        .ok_or_else(|| {
            ConnectionError::Setting(
                "cannot tell where NATS contexts are: neither XDG_CONFIG_HOME nor HOME is set".into(),
            )
        })?;
    Ok(parent.join("nats").join("context").join(format!("{name}.json")))
}

/// A path with a leading `~` replaced, as the `nats` command line does.
fn expand(path: &str, home: Option<&str>) -> PathBuf {
    match (path.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => Path::new(home).join(rest),
        _ => PathBuf::from(path),
    }
}

fn unusable(path: &Path, reason: String) -> ConnectionError {
    ConnectionError::File {
        what: "NATS context",
        path: path.to_owned(),
        reason,
    }
}
