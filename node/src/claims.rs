//! Signed claims of deploy and stop requests: a JWT with the algorithm `ed25519-nkey`, as `nats-io/jwt/v2` writes its
//! `GenericClaims`. An issuer's account key (`A…`) vouches for a workload's name and for the hash of its artefact.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use data_encoding::{BASE32_NOPAD, BASE64URL, HEXLOWER, HEXLOWER_PERMISSIVE};
use nkeys::{KeyPair, KeyPairType};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256, Sha512_256};

/// Longest JWT that is looked at, in bytes.
const MAX_JWT_BYTES: usize = 16 * 1024;

/// Version of the claims format.
const VERSION: u64 = 2;

/// What an issuer signs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claims {
    /// ID of the JWT.
    pub id: String,
    /// Public account key `A…` of the signer.
    pub issuer: String,
    /// Deploy: request ID (0.3) or workload name (0.2.7). Stop: workload ID (0.3) or workload name (0.2.7).
    pub subject: String,
    /// When it was signed, in seconds since 1970.
    pub issued_at: u64,
    /// When it ends, in seconds since 1970.
    pub expires: Option<u64>,
    /// Not to be accepted earlier, in seconds since 1970.
    pub not_before: Option<u64>,
    /// `nats.hash`: SHA-256 of the artefact.
    pub hash: Option<String>,
    /// `nats.name`: workload name.
    pub name: Option<String>,
}

/// Why claims were not signed or not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimsError {
    /// Not three parts separated by dots.
    #[error("expected 3 chunks")]
    Chunks,
    /// Longer than any honest JWT.
    #[error("it is longer than 16 KiB")]
    TooLong,
    /// A part is not base64 (URL alphabet, no padding).
    #[error("its {0} is not base64url")]
    Base64(&'static str),
    /// A part is not the JSON it should be.
    #[error("its {part} is not valid: {reason}")]
    Json {
        /// Header or payload.
        part: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// Not a JWT.
    #[error("not supported type \"{0}\", expected \"JWT\"")]
    Type(String),
    /// Not signed with an nkey.
    #[error("unexpected \"{0}\" algorithm, expected \"ed25519-nkey\"")]
    Algorithm(String),
    /// The issuer is not an account key.
    #[error("its issuer `{0}` is not an account key (A…)")]
    Issuer(String),
    /// The issuer's key did not sign it.
    #[error("claim failed V2 signature verification")]
    Signature,
    /// A claim that must be there is not.
    #[error("claim `{0}` is missing")]
    Missing(&'static str),
    /// Minting: the key has no private part, or is no account key.
    #[error("the signing key cannot sign: an account seed (SA…) is needed")]
    Key,
}

#[derive(Serialize, Deserialize)]
struct Header {
    typ: String,
    alg: String,
}

/// Members in the order of Go's `ClaimsData`, because the ID is a hash over this JSON.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Payload {
    #[serde(skip_serializing_if = "Option::is_none")]
    exp: Option<u64>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    jti: String,
    #[serde(default)]
    iat: u64,
    #[serde(default)]
    iss: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    nbf: Option<u64>,
    #[serde(default)]
    sub: String,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    nats: Map<String, Value>,
}

impl Claims {
    /// Claims of a deploy request, in the 0.3 form: the subject is the request's ID.
    pub fn for_deploy(request_id: &str, name: &str, hash: &str) -> Self {
        Self {
            subject: request_id.to_owned(),
            hash: Some(hash.to_owned()),
            name: Some(name.to_owned()),
            ..Self::default()
        }
    }

    /// Claims of a stop request, in the 0.3 form: the subject is the workload's ID.
    pub fn for_stop(workload_id: &str) -> Self {
        Self {
            subject: workload_id.to_owned(),
            ..Self::default()
        }
    }

    /// Signs them as of now; ID, issuer and time of issue are filled in.
    ///
    /// # Errors
    /// [`ClaimsError::Missing`] without a subject, [`ClaimsError::Key`] if the key is not an account's private key.
    pub fn sign(&self, issuer: &KeyPair) -> Result<String, ClaimsError> {
        self.sign_at(issuer, now())
    }

    /// Signs them as of a given time, in seconds since 1970.
    ///
    /// # Errors
    /// As [`Claims::sign`].
    pub fn sign_at(&self, issuer: &KeyPair, issued_at: u64) -> Result<String, ClaimsError> {
        if self.subject.is_empty() {
            return Err(ClaimsError::Missing("sub"));
        }
        if issuer.key_pair_type() != KeyPairType::Account {
            return Err(ClaimsError::Key);
        }
        let mut payload = Payload {
            exp: self.expires,
            jti: String::new(),
            iat: issued_at,
            iss: issuer.public_key(),
            nbf: self.not_before,
            sub: self.subject.clone(),
            nats: Map::new(),
        };
        payload.jti = BASE32_NOPAD.encode(&Sha512_256::digest(json(&payload)?));
        for (key, value) in [("hash", &self.hash), ("name", &self.name)] {
            if let Some(value) = value {
                payload.nats.insert(key.to_owned(), Value::from(value.as_str()));
            }
        }
        payload.nats.insert("version".to_owned(), VERSION.into());

        let header = Header {
            typ: "JWT".to_owned(),
            alg: "ed25519-nkey".to_owned(),
        };
        let signed = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(json(&header)?),
            URL_SAFE_NO_PAD.encode(json(&payload)?)
        );
        let signature = issuer.sign(signed.as_bytes()).map_err(|_| ClaimsError::Key)?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// Reads a JWT and checks that the account named as its issuer signed it. Says nothing about time or trust:
    /// [`Claims::check_time`] and the caller's list of issuers do.
    ///
    /// # Errors
    /// [`ClaimsError`]
    pub fn verify(jwt: &str) -> Result<Self, ClaimsError> {
        if jwt.len() > MAX_JWT_BYTES {
            return Err(ClaimsError::TooLong);
        }
        let chunks: Vec<&str> = jwt.split('.').collect();
        let &[header, payload, signature] = chunks.as_slice() else {
            return Err(ClaimsError::Chunks);
        };
        let signed_len = header.len() + 1 + payload.len();

        let header: Header = decode("header", header)?;
        if !header.typ.eq_ignore_ascii_case("JWT") {
            return Err(ClaimsError::Type(header.typ));
        }
        if !header.alg.eq_ignore_ascii_case("ed25519-nkey") {
            return Err(ClaimsError::Algorithm(header.alg));
        }
        let payload: Payload = decode("payload", payload)?;
        let issuer = KeyPair::from_public_key(&payload.iss)
            .ok()
            .filter(|key| key.key_pair_type() == KeyPairType::Account)
            .ok_or_else(|| ClaimsError::Issuer(payload.iss.clone()))?;
        let signature = base64("signature", signature)?;
        let signed = jwt.get(..signed_len).ok_or(ClaimsError::Chunks)?;
        issuer
            .verify(signed.as_bytes(), &signature)
            .map_err(|_| ClaimsError::Signature)?;

        if payload.jti.is_empty() {
            return Err(ClaimsError::Missing("jti"));
        }
        if payload.sub.is_empty() {
            return Err(ClaimsError::Missing("sub"));
        }
        if payload.iat == 0 {
            return Err(ClaimsError::Missing("iat"));
        }
        let text = |key: &'static str| match payload.nats.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(ClaimsError::Json {
                part: "payload",
                reason: format!("claim `nats.{key}` is not a string"),
            }),
        };
        Ok(Self {
            hash: text("hash")?,
            name: text("name")?,
            id: payload.jti,
            issuer: payload.iss,
            subject: payload.sub,
            issued_at: payload.iat,
            // Zero is how Go writes "not set".
            expires: payload.exp.filter(|&time| time > 0),
            not_before: payload.nbf.filter(|&time| time > 0),
        })
    }

    /// Checks the standard time claims against a clock, in seconds since 1970.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub fn check_time(&self, now: u64) -> Result<(), String> {
        if let Some(expires) = self.expires.filter(|&expires| now > expires) {
            return Err(format!("claim is expired, since {} s", now - expires));
        }
        if let Some(start) = self.not_before.filter(|&start| start > now) {
            return Err(format!("claim is not yet valid, for another {} s", start - now));
        }
        Ok(())
    }

    /// The signed hash as SHA-256, from either spelling: hexadecimal, or an object store digest `SHA-256=…`.
    #[must_use]
    pub fn sha256(&self) -> Option<[u8; 32]> {
        parse_sha256(self.hash.as_deref()?)
    }
}

/// Reads a SHA-256 in hexadecimal, or as an object store's digest (`SHA-256=` and URL-safe base64).
#[must_use]
pub fn parse_sha256(text: &str) -> Option<[u8; 32]> {
    let bytes = match text.strip_prefix("SHA-256=") {
        Some(digest) => BASE64URL.decode(digest.as_bytes()).ok()?,
        None => HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok()?,
    };
    bytes.try_into().ok()
}

/// SHA-256 of an artefact in hexadecimal, as claims and requests carry it.
#[must_use]
pub fn hex_sha256(artifact: &[u8]) -> String {
    HEXLOWER.encode(&Sha256::digest(artifact))
}

/// Seconds since 1970.
#[must_use]
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs())
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, ClaimsError> {
    serde_json::to_vec(value).map_err(|error| ClaimsError::Json {
        part: "payload",
        reason: error.to_string(),
    })
}

fn base64(part: &'static str, text: &str) -> Result<Vec<u8>, ClaimsError> {
    URL_SAFE_NO_PAD.decode(text).map_err(|_| ClaimsError::Base64(part))
}

fn decode<T: serde::de::DeserializeOwned>(part: &'static str, text: &str) -> Result<T, ClaimsError> {
    serde_json::from_slice(&base64(part, text)?).map_err(|error| ClaimsError::Json {
        part,
        reason: error.to_string(),
    })
}

#[cfg(test)]
mod tests;
