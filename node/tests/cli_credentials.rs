//! Every way of proving to a NATS server who one is, as the flags, variables and contexts of `nex` give it, against real
//! servers that ask for it; and of a server proving it to us.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use std::path::Path;
use std::process::{Command, Output};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nex_host_services::nats_server::{NatsServer, Options};
use nkeys::KeyPair;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair as TlsKey,
    KeyUsagePurpose,
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Starts a server with this configuration.
fn server(config: String) -> NatsServer {
    let options = Options {
        config,
        no_jetstream: true,
        ..Options::default()
    };
    NatsServer::start_with(options).unwrap_or_else(|error| panic!("{error}"))
}

/// Lists the nodes, of which there are none: it works if the server lets us in.
fn list(folder: &Path, flags: &str, variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nex"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("NATS_") {
            command.env_remove(name);
        }
    }
    command
        .args(["node", "ls", "--timeout", "1s"])
        .args(flags.split(' '))
        .envs(variables.iter().copied())
        .current_dir(folder);
    command.output().unwrap()
}

#[track_caller]
fn gets_in(folder: &Path, flags: &str, variables: &[(&str, &str)]) {
    let output = list(folder, flags, variables);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{flags} {variables:?}: {stderr}");
}

#[track_caller]
fn stays_out(folder: &Path, flags: &str, secret: &str) {
    let stderr = refusal(folder, flags);
    assert!(!stderr.contains(secret), "{flags}: {stderr}");
}

/// The one line that says why there is no connection.
#[track_caller]
fn refusal(folder: &Path, flags: &str) -> String {
    let output = list(folder, flags, &[]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{flags}: {stderr}");
    assert_eq!(stderr.lines().count(), 1, "{flags}: {stderr}");
    stderr
}

#[test]
fn passwords_and_nkeys() {
    let user = KeyPair::new_user();
    let server = server(format!(
        "authorization {{ users = [ {{ user: bob, password: \"pa:ss\" }}, {{ nkey: {} }} ] }}",
        user.public_key()
    ));
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    std::fs::write(folder.join("user.nk"), user.seed().unwrap()).unwrap();
    std::fs::write(folder.join("other.nk"), KeyPair::new_user().seed().unwrap()).unwrap();
    let url = server.url();
    let context = json!({ "url": url, "user": "bob", "password": "pa:ss" });
    std::fs::write(folder.join("c.json"), context.to_string()).unwrap();

    gets_in(folder, &format!("-s {url} --user bob --password pa:ss"), &[]);
    gets_in(folder, &format!("-s {url} --user bob"), &[("NATS_PASSWORD", "pa:ss")]);
    let variables = [("NATS_URL", &*url), ("NATS_USER", "bob"), ("NATS_PASSWORD", "pa:ss")];
    gets_in(folder, "--json", &variables);
    gets_in(folder, &format!("-s {url} --nkey user.nk"), &[("NATS_PASSWORD", "x")]);
    gets_in(folder, "--json", &[("NATS_URL", &url), ("NATS_NKEY", "user.nk")]);
    gets_in(
        folder,
        "--context c.json",
        &[("NATS_USER", "x"), ("NATS_PASSWORD", "x")],
    );
    gets_in(folder, "--json", &[("NATS_CONTEXT", "c.json")]);
    let with_credentials = url.replace("://", "://bob:pa%3Ass@");
    gets_in(folder, &format!("-s {with_credentials}"), &[("NATS_PASSWORD", "x")]);

    stays_out(folder, &format!("-s {url}"), "pa:ss");
    stays_out(folder, &format!("-s {url} --user bob --password wrong"), "wrong");
    stays_out(folder, &format!("-s {url} --nkey other.nk"), "SU");
    stays_out(folder, &format!("-s {}", url.replace("://", "://bob:wrong@")), "wrong");
}

#[test]
fn tokens() {
    let server = server("authorization { token: \"open sesame\" }".to_owned());
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let url = server.url();
    gets_in(folder, "--json", &[("NATS_URL", &url), ("NATS_USER", "open sesame")]);
    gets_in(folder, &format!("-s {}", url.replace("://", "://open%20sesame@")), &[]);
    let context = json!({ "url": url, "token": "open sesame" });
    std::fs::write(folder.join("c.json"), context.to_string()).unwrap();
    gets_in(folder, "--context c.json", &[]);
    stays_out(folder, &format!("-s {url} --user sesame"), "sesame");
}

#[test]
fn credentials_files() {
    let [operator, account, user] = [KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_user()];
    let no_limits = json!({
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1
    });
    let operator_jwt = jwt(&operator, &operator, json!({ "type": "operator", "version": 2 }));
    let account_claims = json!({ "limits": no_limits, "type": "account", "version": 2 });
    let account_jwt = jwt(&account, &operator, account_claims);
    let user_claims =
        json!({ "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1, "type": "user", "version": 2 });
    let user_jwt = jwt(&user, &account, user_claims);
    let server = server(format!(
        "operator: {operator_jwt}\nresolver: MEMORY\nresolver_preload: {{ {}: {account_jwt} }}\n",
        account.public_key()
    ));
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let seed = user.seed().unwrap();
    let creds = |seed: &str| {
        format!(
            "-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        )
    };
    std::fs::write(folder.join("user.creds"), creds(&seed)).unwrap();
    let other = KeyPair::new_user().seed().unwrap();
    std::fs::write(folder.join("stolen.creds"), creds(&other)).unwrap();
    let url = server.url();
    let context = json!({ "url": url, "user_jwt": user_jwt, "user_seed": seed });
    std::fs::write(folder.join("c.json"), context.to_string()).unwrap();

    gets_in(folder, &format!("-s {url} --creds user.creds"), &[("NATS_USER", "x")]);
    gets_in(folder, "--json", &[("NATS_URL", &url), ("NATS_CREDS", "user.creds")]);
    gets_in(folder, "--context c.json", &[]);
    stays_out(folder, &format!("-s {url} --creds stolen.creds"), &other);
    let context = json!({ "url": url, "creds": folder.join("user.creds") });
    std::fs::write(folder.join("c.json"), context.to_string()).unwrap();
    gets_in(folder, "--context c.json", &[]);
}

/// A JWT of the NATS security model.
fn jwt(subject: &KeyPair, issuer: &KeyPair, nats: Value) -> String {
    let claims = json!({
        "jti": "test", "iat": 1_700_000_000, "iss": issuer.public_key(), "sub": subject.public_key(), "nats": nats
    });
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!(
        "{}.{}",
        part(json!({ "typ": "JWT", "alg": "ed25519-nkey" })),
        part(claims)
    );
    let signature = issuer.sign(signed.as_bytes()).unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

type Authority = CertifiedIssuer<'static, TlsKey>;

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    CertifiedIssuer::self_signed(params, TlsKey::generate().unwrap()).unwrap()
}

/// Writes `NAME.pem` and `NAME.key`, a certificate of this authority.
fn certificate(folder: &Path, name: &str, authority: &Authority, purpose: ExtendedKeyUsagePurpose) {
    let key = TlsKey::generate().unwrap();
    let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    params.extended_key_usages = vec![purpose];
    let certificate = params.signed_by(&key, authority).unwrap();
    std::fs::write(folder.join(format!("{name}.pem")), certificate.pem()).unwrap();
    std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).unwrap();
}

/// A folder with two authorities, a server's certificate from the first, and a client's from each.
fn certificates() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let [ours, other] = ["ours", "other"].map(authority);
    std::fs::write(folder.path().join("ca.pem"), ours.pem()).unwrap();
    std::fs::write(folder.path().join("other-ca.pem"), other.pem()).unwrap();
    certificate(folder.path(), "server", &ours, ExtendedKeyUsagePurpose::ServerAuth);
    certificate(folder.path(), "client", &ours, ExtendedKeyUsagePurpose::ClientAuth);
    certificate(folder.path(), "stranger", &other, ExtendedKeyUsagePurpose::ClientAuth);
    folder
}

/// The server's settings for these certificates.
fn tls(folder: &Path, more: &str) -> String {
    let path = |name: &str| Value::from(folder.join(name).to_string_lossy());
    let [cert, key, ca] = ["server.pem", "server.key", "ca.pem"].map(path);
    format!("tls {{ cert_file: {cert}, key_file: {key}, ca_file: {ca}, {more} }}")
}

#[test]
fn certificates_of_servers() {
    let certificates = certificates();
    let folder = certificates.path();
    let server = server(tls(folder, "verify: false"));
    let url = server.url();
    let context = json!({ "url": url, "ca": folder.join("ca.pem") });
    std::fs::write(folder.join("c.json"), context.to_string()).unwrap();

    gets_in(folder, &format!("-s {url} --tlsca ca.pem"), &[]);
    gets_in(folder, "--json", &[("NATS_URL", &url), ("NATS_CA", "ca.pem")]);
    gets_in(folder, "--context c.json", &[]);

    // The system's authorities do not know it either.
    for flags in ["--tlsca other-ca.pem", "--json"] {
        let refusal = refusal(folder, &format!("-s {url} {flags}"));
        assert!(
            refusal.contains("no authority trusted here has issued its certificate"),
            "{refusal}"
        );
        assert!(refusal.contains("--tlsca"), "{refusal}");
    }
}

#[test]
fn certificates_of_clients() {
    let certificates = certificates();
    let folder = certificates.path();
    let server = server(tls(folder, "verify: true"));
    let url = server.url();
    gets_in(
        folder,
        &format!("-s {url} --tlsca ca.pem --tlscert client.pem --tlskey client.key"),
        &[("NATS_CERT", "x")],
    );
    let variables = [("NATS_CERT", "client.pem"), ("NATS_KEY", "client.key")];
    gets_in(folder, &format!("-s {url} --tlsca ca.pem"), &variables);

    let none = refusal(folder, &format!("-s {url} --tlsca ca.pem"));
    assert!(none.contains("demands a certificate of this client"), "{none}");
    assert!(none.contains("--tlscert"), "{none}");
    let flags = "--tlsca ca.pem --tlscert stranger.pem --tlskey stranger.key";
    let strange = refusal(folder, &format!("-s {url} {flags}"));
    assert!(
        strange.contains("does not accept the certificate of this client"),
        "{strange}"
    );
}

#[test]
fn handshake_first() {
    let certificates = certificates();
    let folder = certificates.path();
    let server = server(tls(folder, "handshake_first: true"));
    let url = server.url();
    gets_in(folder, &format!("-s {url} --tlsca ca.pem --tlsfirst"), &[]);
    refusal(folder, &format!("-s {url} --tlsca ca.pem"));
}
