//! Each service can be switched off, and then every operation of it is denied.

use nex_host_services::Config;
use nex_runtime::host_services::{Headers, HostErrorCode, HttpMethod, Operation};

use crate::world::*;

fn operations() -> Vec<Operation> {
    let (bucket, key, name) = (None::<String>, "k".to_owned(), "o".to_owned());
    let (subject, headers) = ("s".to_owned(), Headers::new());
    let (timeout_ms, max_replies) = (Some(10), None);
    vec![
        Operation::KvGet {
            bucket: bucket.clone(),
            key: key.clone(),
        },
        Operation::KvSet {
            bucket: bucket.clone(),
            key: key.clone(),
        },
        Operation::KvDelete {
            bucket: bucket.clone(),
            key,
        },
        Operation::KvKeys { bucket: bucket.clone() },
        Operation::ObjectGet {
            bucket: bucket.clone(),
            name: name.clone(),
        },
        Operation::ObjectPut {
            bucket: bucket.clone(),
            name: name.clone(),
        },
        Operation::ObjectDelete {
            bucket: bucket.clone(),
            name,
        },
        Operation::ObjectList { bucket },
        Operation::Publish {
            subject: subject.clone(),
            headers: headers.clone(),
        },
        Operation::Request {
            subject: subject.clone(),
            headers: headers.clone(),
            timeout_ms,
        },
        Operation::RequestMany {
            subject,
            headers: headers.clone(),
            timeout_ms,
            max_replies,
        },
        Operation::Http {
            method: HttpMethod::Get,
            url: "http://scripted.test/".to_owned(),
            headers,
            timeout_ms,
        },
    ]
}

#[tokio::test]
async fn switched_off_is_denied_and_the_others_are_not() {
    for off in ["kv", "objectstore", "messaging", "http"] {
        let text = format!(r#"{{ "{off}": {{ "enabled": false }} }}"#);
        let config: Config = serde_json::from_str(&text).unwrap();
        let services = World::memory().configured(config).await;
        for operation in operations() {
            let (service, _) = operation.name();
            let denied = match services.call(operation.clone(), "").await {
                Err(error) if error.code == HostErrorCode::PermissionDenied => {
                    assert!(error.message.contains(off), "{error}");
                    true
                }
                _ => false,
            };
            assert_eq!(denied, service == off, "{operation:?}");
        }
    }
}
