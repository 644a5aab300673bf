#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use std::collections::HashMap;
use std::path::Path;

use super::*;

fn environment(pairs: &[(&str, &str)]) -> impl Fn(&str) -> Option<String> + use<> {
    let map: HashMap<String, String> = pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    move |name| map.get(name).cloned()
}

/// A config directory with the context `work`.
fn context(json: &str) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path().join("nats/context");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("work.json"), json).unwrap();
    let path = directory.path().to_str().unwrap().to_owned();
    (directory, path)
}

fn user(name: &str, password: &str) -> Auth {
    Auth::Password {
        user: name.to_owned(),
        password: password.to_owned(),
    }
}

#[test]
fn defaults() {
    let connection = resolve(Settings::default(), ContextChoice::None, environment(&[])).unwrap();
    assert_eq!(connection.servers(), DEFAULT_SERVER);
    assert_eq!(connection.timeout, DEFAULT_TIMEOUT);
    assert_eq!(connection.auth, Auth::None);
    assert_eq!(connection.tls, Tls::default());
    assert!(connection.name.starts_with("nex-"));
}

#[test]
fn flags_outrank_the_environment() {
    let flags = Settings {
        servers: Some("nats://flag:1".into()),
        timeout: Some(Duration::from_secs(9)),
        ..Settings::default()
    };
    let variables = environment(&[
        ("NATS_URL", "nats://env:2"),
        ("NATS_TIMEOUT", "750ms"),
        ("NATS_CA", "/ca.pem"),
        ("NATS_USER", ""),
    ]);
    let connection = resolve(flags, ContextChoice::None, variables).unwrap();
    assert_eq!(connection.servers(), "nats://flag:1");
    assert_eq!(connection.timeout, Duration::from_secs(9));
    assert_eq!(connection.tls.ca.as_deref(), Some(Path::new("/ca.pem")));
    assert_eq!(connection.auth, Auth::None, "an empty variable is absent");
}

#[test]
fn a_context_named_by_a_flag_outranks_the_environment() {
    let (_directory, config) =
        context(r#"{"url":"nats://context:3","user":"c","password":"p","jetstream_domain":"hub","colour_scheme":"x"}"#);
    let variables = environment(&[
        ("XDG_CONFIG_HOME", &config),
        ("NATS_URL", "nats://env:2"),
        ("NATS_CREDS", "/env.creds"),
        ("NATS_TIMEOUT", "3s"),
    ]);
    let connection = resolve(Settings::default(), ContextChoice::Flag("work"), &variables).unwrap();
    assert_eq!(connection.servers(), "nats://context:3");
    assert_eq!(connection.auth, user("c", "p"));
    assert_eq!(connection.js_domain.as_deref(), Some("hub"));
    assert_eq!(
        connection.timeout,
        Duration::from_secs(3),
        "what the context is silent about comes from the environment"
    );

    let connection = resolve(Settings::default(), ContextChoice::Environment("work"), &variables).unwrap();
    assert_eq!(connection.servers(), "nats://env:2");
    assert_eq!(connection.auth, Auth::Credentials("/env.creds".into()));
}

#[test]
fn flags_outrank_a_context_and_replace_its_identity_as_a_whole() {
    let (_directory, config) = context(r#"{"url":"nats://context:3","user":"c","password":"p","creds":"~/c.creds"}"#);
    let variables = environment(&[("XDG_CONFIG_HOME", &config), ("HOME", "/home/me")]);
    let flags = Settings {
        servers: Some("flag".into()),
        auth: settings::AuthSettings {
            user: Some("token".into()),
            ..settings::AuthSettings::default()
        },
        ..Settings::default()
    };
    let connection = resolve(flags, ContextChoice::Flag("work"), &variables).unwrap();
    assert_eq!(connection.servers(), "nats://flag:4222");
    assert_eq!(
        connection.auth,
        Auth::Token("token".into()),
        "a user without a password is a token, and the context's password is not borrowed"
    );

    let connection = resolve(Settings::default(), ContextChoice::Flag("work"), &variables).unwrap();
    assert_eq!(connection.auth, Auth::Credentials("/home/me/c.creds".into()));
}

#[test]
fn a_context_is_found_under_home_and_by_path() {
    let (directory, config) = context(r#"{"url":"nats://context:3"}"#);
    let home = directory.path().join("home");
    std::fs::create_dir_all(home.join(".config")).unwrap();
    std::fs::rename(directory.path().join("nats"), home.join(".config/nats")).unwrap();
    let variables = environment(&[("HOME", home.to_str().unwrap())]);
    let found = |name: &str| {
        resolve(Settings::default(), ContextChoice::Flag(name), &variables)
            .unwrap()
            .servers()
    };
    assert_eq!(found("work"), "nats://context:3");
    assert_eq!(
        found(&format!("{config}/home/.config/nats/context/work.json")),
        "nats://context:3"
    );
    assert_eq!(found("~/.config/nats/context/work.json"), "nats://context:3");
}

#[test]
fn halves_are_completed_from_the_environment_or_refused() {
    let flags = || Settings {
        auth: settings::AuthSettings {
            user: Some("bob".into()),
            ..settings::AuthSettings::default()
        },
        cert: Some("/c.pem".into()),
        ..Settings::default()
    };
    let connection = resolve(
        flags(),
        ContextChoice::None,
        environment(&[("NATS_PASSWORD", "s3cret"), ("NATS_KEY", "/k.pem")]),
    )
    .unwrap();
    assert_eq!(connection.auth, user("bob", "s3cret"));
    assert_eq!(connection.tls.certificate, Some(("/c.pem".into(), "/k.pem".into())));
    assert!(!format!("{connection:?}").contains("s3cret"), "secrets are not shown");

    let error = resolve(flags(), ContextChoice::None, environment(&[])).unwrap_err();
    assert!(error.to_string().contains("--tlskey"), "{error}");
    let error = resolve(
        Settings::default(),
        ContextChoice::None,
        environment(&[("NATS_PASSWORD", "x")]),
    )
    .unwrap_err();
    assert!(error.to_string().contains("--user"), "{error}");
}

#[test]
fn bad_settings_are_named() {
    let (_directory, config) = context(r#"{"url": 3}"#);
    let failure = |context, pairs: &[(&str, &str)]| {
        let mut pairs = pairs.to_vec();
        pairs.push(("XDG_CONFIG_HOME", &config));
        let error = resolve(Settings::default(), context, environment(&pairs)).unwrap_err();
        assert!(error.is_usage());
        error.to_string()
    };
    let cases = [
        (ContextChoice::Flag("nope"), vec![], "no NATS context `nope`"),
        (ContextChoice::Flag("work"), vec![], "work.json"),
        (ContextChoice::Flag("../x"), vec![], "not the name"),
        (
            ContextChoice::None,
            vec![("NATS_URL", "nats://a b")],
            "is not a server URL",
        ),
        (ContextChoice::None, vec![("NATS_URL", ",")], "empty"),
        (ContextChoice::None, vec![("NATS_TIMEOUT", "2")], "NATS_TIMEOUT: `2`"),
        (ContextChoice::None, vec![("NATS_TLSFIRST", "maybe")], "NATS_TLSFIRST"),
    ];
    for (context, pairs, expected) in cases {
        let error = failure(context, &pairs);
        assert!(error.contains(expected), "{pairs:?}: {error}");
        assert!(!error.contains('\n'), "one line: {error}");
    }
    let error = failure(ContextChoice::None, &[("NATS_URL", "nats://me:hunter2@a b")]);
    assert!(!error.contains("hunter2"), "{error}");
}

#[test]
fn contexts_that_ask_for_more_are_refused() {
    for json in [
        r#"{"nsc":"nsc://o/a/u"}"#,
        r#"{"socks_proxy":"socks5://x"}"#,
        r#"{"creds":"op://vault/item"}"#,
    ] {
        let (_directory, config) = context(json);
        let error = resolve(
            Settings::default(),
            ContextChoice::Flag("work"),
            environment(&[("XDG_CONFIG_HOME", &config)]),
        )
        .unwrap_err();
        assert!(error.to_string().contains("support"), "{json}: {error}");
    }
}

#[test]
fn credentials_in_a_url_are_not_replaced_by_a_weaker_source() {
    let flags = Settings {
        servers: Some("nats://me:pw@host".into()),
        ..Settings::default()
    };
    let variables = environment(&[("NATS_CREDS", "/env.creds"), ("NATS_PASSWORD", "x")]);
    let connection = resolve(flags, ContextChoice::None, variables).unwrap();
    assert_eq!(connection.auth, user("me", "pw"));
    let connection = Connection::to("nats://a%40b:p%3Aw@[::1]:5", "x").unwrap();
    assert_eq!(connection.auth, user("a@b", "p:w"));
    assert_eq!(connection.servers(), "nats://[::1]:5");
    let connection = Connection::to("nats://a, nats://token@b", "x").unwrap();
    assert_eq!(connection.auth, Auth::Token("token".into()));
}

#[test]
fn passwords_in_urls_are_not_shown() {
    let connection = Connection::to("nats://me:hunter2@host:1,tls://other", "x").unwrap();
    assert_eq!(connection.servers(), "nats://host:1, tls://other:4222");
}

#[test]
fn nkey_files_may_hold_comments() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("user.nk");
    let seed = nkeys::KeyPair::new_user().seed().unwrap();
    std::fs::write(&path, format!("# key of the test\n{seed}\n")).unwrap();
    assert!(Auth::Nkey(path.clone()).apply(ConnectOptions::new()).is_ok());
    std::fs::write(&path, "nothing").unwrap();
    let error = Auth::Nkey(path).apply(ConnectOptions::new()).unwrap_err();
    assert!(error.to_string().contains("user.nk"), "{error}");
    let error = Auth::Credentials("/nowhere/x.creds".into())
        .apply(ConnectOptions::new())
        .unwrap_err();
    assert!(error.to_string().contains("/nowhere/x.creds"), "{error}");
}

#[tokio::test]
async fn an_unreachable_server_is_named() {
    // A port that was free a moment ago: nobody listens there.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let url = format!("nats://127.0.0.1:{port}");
    let error = Connection::to(&url, "x").unwrap().connect().await.unwrap_err();
    assert!(!error.is_usage());
    assert!(error.to_string().contains(&url), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn a_silent_server_is_given_up_on() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    let mut connection = Connection::to(&url, "x").unwrap();
    connection.timeout = Duration::from_millis(50);
    let error = connection.connect().await.unwrap_err();
    assert!(error.to_string().contains(&format!("{url} within 50ms")), "{error}");
}
