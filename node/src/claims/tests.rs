//! Claims are minted as jwt/v2 does, and refused for what is wrong with them.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use super::*;

fn part(jwt: &str, index: usize) -> String {
    let chunk = jwt.split('.').nth(index).unwrap();
    String::from_utf8(URL_SAFE_NO_PAD.decode(chunk).unwrap()).unwrap()
}

/// Signs any payload, as a foreign client might.
fn forge(header: &str, payload: &str, key: &KeyPair) -> String {
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
    let signature = key.sign(signed.as_bytes()).unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

const HEADER: &str = r#"{"typ":"JWT","alg":"ed25519-nkey"}"#;

#[test]
fn minted_as_jwt_v2_does() {
    let issuer = KeyPair::new_account();
    let key = issuer.public_key();
    let claims = Claims::for_deploy("9c2e", "echo", "00ff");
    let jwt = claims.sign_at(&issuer, 1_720_000_000).unwrap();
    assert_eq!(part(&jwt, 0), HEADER);
    // The ID is the base32 SHA-512/256 of the standard claims without an ID, in Go's member order.
    let hashed = format!(r#"{{"iat":1720000000,"iss":"{key}","sub":"9c2e"}}"#);
    let id = BASE32_NOPAD.encode(&Sha512_256::digest(hashed));
    let expected = format!(
        r#"{{"jti":"{id}","iat":1720000000,"iss":"{key}","sub":"9c2e","nats":{{"hash":"00ff","name":"echo","version":2}}}}"#
    );
    assert_eq!(part(&jwt, 1), expected);

    let verified = Claims::verify(&jwt).unwrap();
    assert_eq!(verified.id, id);
    assert_eq!(verified.issuer, key);
    assert_eq!(verified.name.as_deref(), Some("echo"));
    assert_eq!(verified.hash.as_deref(), Some("00ff"));
    assert_eq!(verified.issued_at, 1_720_000_000);
}

#[test]
fn stop_claims_carry_no_workload() {
    let issuer = KeyPair::new_account();
    let jwt = Claims::for_stop("w1").sign(&issuer).unwrap();
    assert!(part(&jwt, 1).ends_with(r#""sub":"w1","nats":{"version":2}}"#));
}

#[test]
fn only_accounts_sign() {
    let claims = Claims::for_stop("w1");
    assert_eq!(claims.sign(&KeyPair::new_user()), Err(ClaimsError::Key));
    let public = KeyPair::from_public_key(&KeyPair::new_account().public_key()).unwrap();
    assert_eq!(claims.sign(&public), Err(ClaimsError::Key));
}

#[test]
fn refused() {
    let issuer = KeyPair::new_account();
    let user = KeyPair::new_user();
    let key = issuer.public_key();
    let payload = format!(r#"{{"jti":"J","iat":1,"iss":"{key}","sub":"s","nats":{{"version":2}}}}"#);
    let good = forge(HEADER, &payload, &issuer);
    assert!(Claims::verify(&good).is_ok());

    let (signed, _) = good.rsplit_once('.').unwrap();
    for (jwt, error) in [
        (String::new(), ClaimsError::Chunks),
        ("a.b".to_owned(), ClaimsError::Chunks),
        ("a.b.c.d".to_owned(), ClaimsError::Chunks),
        ("a".repeat(MAX_JWT_BYTES + 1), ClaimsError::TooLong),
        (format!("*{good}"), ClaimsError::Base64("header")),
        (format!("{signed}.###"), ClaimsError::Base64("signature")),
        (format!("{signed}.AAAA"), ClaimsError::Signature),
        (forge(HEADER, &payload, &KeyPair::new_account()), ClaimsError::Signature),
        (
            forge(r#"{"typ":"JWS","alg":"ed25519-nkey"}"#, &payload, &issuer),
            ClaimsError::Type("JWS".into()),
        ),
        (
            forge(r#"{"typ":"JWT","alg":"none"}"#, &payload, &issuer),
            ClaimsError::Algorithm("none".into()),
        ),
        (
            forge(HEADER, &payload.replace(&key, &user.public_key()), &user),
            ClaimsError::Issuer(user.public_key()),
        ),
        (
            forge(HEADER, &payload.replace(&key, "A"), &issuer),
            ClaimsError::Issuer("A".into()),
        ),
        (
            forge(HEADER, &payload.replace("\"J\"", "\"\""), &issuer),
            ClaimsError::Missing("jti"),
        ),
        (
            forge(HEADER, &payload.replace("\"s\"", "\"\""), &issuer),
            ClaimsError::Missing("sub"),
        ),
        (
            forge(HEADER, &payload.replace("\"iat\":1", "\"iat\":0"), &issuer),
            ClaimsError::Missing("iat"),
        ),
    ] {
        assert_eq!(Claims::verify(&jwt), Err(error));
    }
    for payload in [
        "null",
        "[]",
        "{\"iat\":\"x\"}",
        &payload.replace("\"version\":2", "\"hash\":5"),
    ] {
        let refused = Claims::verify(&forge(HEADER, payload, &issuer));
        assert!(
            matches!(refused, Err(ClaimsError::Json { part: "payload", .. })),
            "{refused:?}"
        );
    }
}

#[test]
fn time_claims() {
    let claims = Claims {
        expires: Some(100),
        not_before: Some(50),
        ..Claims::for_stop("x")
    };
    assert!(claims.check_time(49).is_err());
    assert_eq!(claims.check_time(50), Ok(()));
    assert_eq!(claims.check_time(100), Ok(()));
    assert!(claims.check_time(101).is_err());
}

#[test]
fn hash_spellings() {
    let digest = Sha256::digest(b"hello");
    for text in [
        HEXLOWER.encode(&digest),
        HEXLOWER.encode(&digest).to_uppercase(),
        format!("SHA-256={}", BASE64URL.encode(&digest)),
    ] {
        assert_eq!(parse_sha256(&text), Some(digest.into()), "{text}");
    }
    for text in ["", "abc12345TODOmakethisreal", "SHA-256=", "00ff"] {
        assert_eq!(parse_sha256(text), None, "{text}");
    }
    assert_eq!(hex_sha256(b"hello"), HEXLOWER.encode(&digest));
}
