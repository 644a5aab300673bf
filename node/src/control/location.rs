//! Where an artefact lies: `nats://BUCKET/key`. On the wire either that text or, as the original client sends it, the
//! JSON form of Go's `url.URL`.

use std::fmt;
use std::str::FromStr;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};
use serde_json::Value;

/// An object in a JetStream object store. `Display` and `FromStr` use the URL form, with percent-escapes in the key;
/// it is serialised as Go's `url.URL`, which all versions of the original node read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// Object store bucket.
    pub bucket: String,
    /// Object name within it.
    pub key: String,
}

/// Why a text or JSON value is no [`Location`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LocationError {
    /// Not `nats://`.
    #[error("the scheme `{0}` is not supported, expected nats://BUCKET/key")]
    Scheme(String),
    /// No bucket.
    #[error("it names no bucket, expected nats://BUCKET/key")]
    NoBucket,
    /// Bucket names are `[a-zA-Z0-9_-]+`.
    #[error("`{0}` is not a valid bucket name")]
    Bucket(String),
    /// No key.
    #[error("it names no object, expected nats://BUCKET/key")]
    NoKey,
    /// A broken percent-escape, or one that is not UTF-8.
    #[error("its path has an invalid percent-escape")]
    Escape,
    /// A member of the structured form is missing or no string.
    #[error("`{0}` of the structured URL is not a string")]
    Member(&'static str),
    /// Neither a string nor an object.
    #[error("expected a URL string or a structured URL")]
    Type,
}

impl Location {
    /// An object by bucket and name.
    ///
    /// # Errors
    /// [`LocationError`] if either is empty or the bucket name is invalid.
    pub fn new(bucket: impl Into<String>, key: impl Into<String>) -> Result<Self, LocationError> {
        let (bucket, key) = (bucket.into(), key.into());
        if bucket.is_empty() {
            return Err(LocationError::NoBucket);
        }
        if !super::subjects::is_valid_name(&bucket) {
            return Err(LocationError::Bucket(bucket));
        }
        if key.is_empty() {
            return Err(LocationError::NoKey);
        }
        Ok(Self { bucket, key })
    }

    /// Reads either wire form.
    ///
    /// # Errors
    /// [`LocationError`]
    pub fn from_json(value: &Value) -> Result<Self, LocationError> {
        match value {
            Value::String(url) => url.parse(),
            Value::Object(members) => {
                let member = |name: &'static str| match members.get(name) {
                    None | Some(Value::Null) => Ok(""),
                    Some(Value::String(text)) => Ok(text.as_str()),
                    Some(_) => Err(LocationError::Member(name)),
                };
                check_scheme(member("Scheme")?)?;
                // Go keeps the decoded path.
                Self::new(member("Host")?, member("Path")?.trim_matches('/'))
            }
            _ => Err(LocationError::Type),
        }
    }
}

fn check_scheme(scheme: &str) -> Result<(), LocationError> {
    if scheme.eq_ignore_ascii_case("nats") {
        Ok(())
    } else {
        Err(LocationError::Scheme(scheme.to_owned()))
    }
}

impl FromStr for Location {
    type Err = LocationError;

    fn from_str(url: &str) -> Result<Self, Self::Err> {
        let Some((scheme, rest)) = url.split_once("://") else {
            return Err(LocationError::Scheme(String::new()));
        };
        check_scheme(scheme)?;
        let (bucket, path) = rest.split_once('/').unwrap_or((rest, ""));
        Self::new(bucket, unescape(path.trim_matches('/'))?)
    }
}

/// Decodes percent-escapes.
pub(crate) fn unescape(path: &str) -> Result<String, LocationError> {
    let mut bytes = path.bytes();
    let mut decoded = Vec::with_capacity(path.len());
    while let Some(byte) = bytes.next() {
        decoded.push(if byte == b'%' {
            let mut digit = || {
                let digit = bytes.next().and_then(|b| char::from(b).to_digit(16));
                digit.and_then(|d| u8::try_from(d).ok()).ok_or(LocationError::Escape)
            };
            digit()? << 4 | digit()?
        } else {
            byte
        });
    }
    String::from_utf8(decoded).map_err(|_| LocationError::Escape)
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nats://{}/", self.bucket)?;
        for byte in self.key.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
                write!(f, "{}", char::from(byte))?;
            } else {
                write!(f, "%{byte:02X}")?;
            }
        }
        Ok(())
    }
}

impl Serialize for Location {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut url = serializer.serialize_struct("URL", 11)?;
        url.serialize_field("Scheme", "nats")?;
        url.serialize_field("Opaque", "")?;
        url.serialize_field("User", &None::<()>)?;
        url.serialize_field("Host", &self.bucket)?;
        url.serialize_field("Path", &format_args!("/{}", self.key))?;
        url.serialize_field("RawPath", "")?;
        url.serialize_field("OmitHost", &false)?;
        url.serialize_field("ForceQuery", &false)?;
        url.serialize_field("RawQuery", "")?;
        url.serialize_field("Fragment", "")?;
        url.serialize_field("RawFragment", "")?;
        url.end()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_both_forms() {
        let expected = Location::new("NEXCLIFILES", "echo function.js").unwrap();
        let text = "nats://NEXCLIFILES/echo%20function.js";
        assert_eq!(text.parse(), Ok(expected.clone()));
        assert_eq!(expected.to_string(), text);
        assert_eq!(Location::from_json(&json!(text)), Ok(expected.clone()));
        let go = json!({
            "Scheme": "nats", "Opaque": "", "User": null, "Host": "NEXCLIFILES", "Path": "/echo function.js",
            "RawPath": "", "OmitHost": false, "ForceQuery": false, "RawQuery": "", "Fragment": "", "RawFragment": ""
        });
        assert_eq!(Location::from_json(&go), Ok(expected.clone()));
        assert_eq!(serde_json::to_value(&expected).unwrap(), go);
    }

    #[test]
    fn refuses_what_is_no_location() {
        for (value, error) in [
            (json!("file:///etc/passwd"), LocationError::Scheme("file".into())),
            (json!("echo.js"), LocationError::Scheme(String::new())),
            (json!("nats:///key"), LocationError::NoBucket),
            (json!("nats://bucket"), LocationError::NoKey),
            (json!("nats://bucket/"), LocationError::NoKey),
            (json!("nats://a.b/c"), LocationError::Bucket("a.b".into())),
            (json!("nats://b/%zz"), LocationError::Escape),
            (json!("nats://b/%f"), LocationError::Escape),
            (json!("nats://b/%ff"), LocationError::Escape),
            (json!({"Scheme": "nats", "Host": 5}), LocationError::Member("Host")),
            (json!({}), LocationError::Scheme(String::new())),
            (json!(7), LocationError::Type),
        ] {
            assert_eq!(Location::from_json(&value), Err(error), "{value}");
        }
    }
}
