//! Whether signed claims are good for what they are sent with.

use std::num::NonZeroU32;

use crate::claims::{self, Claims, ClaimsError};
use crate::control::messages::DeployRequest;
use crate::control::subjects::is_valid_name;

/// How far the signer's clock may be ahead of ours, in seconds.
const CLOCK_SKEW: u64 = 60;

/// Why claims are refused. The first words are those of the original.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("could not decode workload JWT: {0}")]
    Decode(#[from] ClaimsError),
    #[error("invalid workload name `{0}`, expected up to 128 of [a-zA-Z0-9_-]")]
    Name(String),
    #[error("workload name `{requested}` does not match the signed name `{signed}`")]
    OtherName { requested: String, signed: String },
    #[error("artifact hash claim does not match request")]
    OtherHash,
    #[error("the claims have no `hash`, expected the artefact's SHA-256")]
    NoHash,
    #[error("hash claim `{0}` is not a SHA-256, expected 64 hexadecimal digits")]
    Hash(String),
    #[error("standard claims within JWT are not valid: {0}")]
    Time(String),
    #[error("these claims (jti {0}) have been used before, expected new ones for each request")]
    Replayed(String),
}

/// Claims of a deploy request that are good.
#[derive(Debug)]
pub(super) struct DeployClaims {
    pub(super) claims: Claims,
    pub(super) name: String,
    /// SHA-256 the artefact must have.
    pub(super) hash: [u8; 32],
}

/// Checks the claims of a deploy request, except whether the issuer is welcome.
pub(super) fn check_deploy(request: &DeployRequest, max_age: NonZeroU32, now: u64) -> Result<DeployClaims, Refused> {
    let claims = Claims::verify(&request.workload_jwt)?;
    // 0.2.7 signs the name as the subject; 0.3 has the request's ID there.
    let name = claims.name.clone().unwrap_or_else(|| claims.subject.clone());
    if !is_valid_name(&name) {
        return Err(Refused::Name(name));
    }
    if let Some(requested) = request.workload_name.as_ref().filter(|requested| **requested != name) {
        return Err(Refused::OtherName {
            requested: requested.clone(),
            signed: name,
        });
    }
    let signed = claims.hash.as_deref().ok_or(Refused::NoHash)?;
    let hash = claims.sha256();
    if let Some(requested) = &request.hash
        && requested != signed
        && (hash.is_none() || claims::parse_sha256(requested) != hash)
    {
        return Err(Refused::OtherHash);
    }
    let hash = hash.ok_or_else(|| Refused::Hash(signed.to_owned()))?;
    check_time(&claims, max_age, now)?;
    Ok(DeployClaims { claims, name, hash })
}

/// Checks when claims were signed and how long they last.
pub(super) fn check_time(claims: &Claims, max_age: NonZeroU32, now: u64) -> Result<(), Refused> {
    claims.check_time(now).map_err(Refused::Time)?;
    if claims.issued_at > now + CLOCK_SKEW {
        let ahead = claims.issued_at - now;
        return Err(Refused::Time(format!(
            "claim was issued {ahead} s in the future, are the clocks right?"
        )));
    }
    if now > valid_until(claims, max_age) {
        let age = now - claims.issued_at;
        return Err(Refused::Time(format!(
            "claim was issued {age} s ago and has no expiry, such claims are accepted for {max_age} s"
        )));
    }
    Ok(())
}

/// End of the life of claims: their expiry, or so long after they were signed.
pub(super) fn valid_until(claims: &Claims, max_age: NonZeroU32) -> u64 {
    claims
        .expires
        .unwrap_or_else(|| claims.issued_at.saturating_add(max_age.get().into()))
}
