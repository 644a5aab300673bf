//! A workload's environment on its way to the node: a JSON map, sealed with the sender's xkey for the node's xkey
//! (`xkv1`, nonce, NaCl box), in standard base64. Only that node can read it.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nkeys::XKey;

/// Variables by name.
pub type Environment = BTreeMap<String, String>;

/// Why an environment could not be sealed or opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnvironmentError {
    /// Not base64.
    #[error("the environment is not base64: {0}")]
    Base64(#[from] base64::DecodeError),
    /// The other side's key is no public xkey.
    #[error("`{0}` is not a public xkey (X…)")]
    PublicKey(String),
    /// The box does not open: sealed for another node, by another sender, or damaged.
    #[error("it does not open with this node's key and the sender's public key: {0}")]
    Box(nkeys::error::Error),
    /// Opened, but not a map of strings.
    #[error("its content is not a JSON object of strings: {0}")]
    Json(#[from] serde_json::Error),
}

/// Seals an environment for a node.
///
/// # Errors
/// [`EnvironmentError::PublicKey`] if the recipient is no public xkey.
pub fn seal(environment: &Environment, sender: &XKey, recipient_public_key: &str) -> Result<String, EnvironmentError> {
    let recipient = public_key(recipient_public_key)?;
    let sealed = sender
        .seal(&serde_json::to_vec(environment)?, &recipient)
        .map_err(EnvironmentError::Box)?;
    Ok(STANDARD.encode(sealed))
}

/// Opens an environment that was sealed for `recipient`. The content may be JSON `null`, which is an empty one.
///
/// # Errors
/// [`EnvironmentError`]
pub fn open(sealed: &str, recipient: &XKey, sender_public_key: &str) -> Result<Environment, EnvironmentError> {
    let sender = public_key(sender_public_key)?;
    let plain = recipient
        .open(&STANDARD.decode(sealed)?, &sender)
        .map_err(EnvironmentError::Box)?;
    Ok(serde_json::from_slice::<Option<Environment>>(&plain)?.unwrap_or_default())
}

fn public_key(text: &str) -> Result<XKey, EnvironmentError> {
    XKey::from_public_key(text).map_err(|_| EnvironmentError::PublicKey(text.to_owned()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn only_the_recipient_opens_it() {
        let (sender, node, other) = (XKey::new(), XKey::new(), XKey::new());
        let environment = Environment::from([("GREETING".to_owned(), "héllo".to_owned())]);
        let sealed = seal(&environment, &sender, &node.public_key()).unwrap();
        assert_eq!(open(&sealed, &node, &sender.public_key()).unwrap(), environment);
        let wrong = open(&sealed, &other, &sender.public_key());
        assert!(matches!(wrong, Err(EnvironmentError::Box(_))));
        let wrong = open(&sealed, &node, &other.public_key());
        assert!(matches!(wrong, Err(EnvironmentError::Box(_))));
        let wrong = open(&sealed, &node, "A");
        assert!(matches!(wrong, Err(EnvironmentError::PublicKey(_))));
        let wrong = open("???", &node, &sender.public_key());
        assert!(matches!(wrong, Err(EnvironmentError::Base64(_))));
    }

    #[test]
    fn content_must_be_a_map_of_strings_or_null() {
        let (sender, node) = (XKey::new(), XKey::new());
        let open_plain = |plain: &str| {
            let sealed = STANDARD.encode(sender.seal(plain.as_bytes(), &node).unwrap());
            open(&sealed, &node, &sender.public_key())
        };
        assert_eq!(open_plain("null").unwrap(), Environment::new());
        assert!(matches!(open_plain("[1]"), Err(EnvironmentError::Json(_))));
        assert!(matches!(open_plain("{\"a\":1}"), Err(EnvironmentError::Json(_))));
    }
}
