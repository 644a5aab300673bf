//! Key-value cases.

super::in_every_world!(cases:
    all_bytes_and_none_survive
    missing_things
    keys_are_live_and_sorted
    revisions_grow
    buckets_are_apart
    malformed_names
    a_full_bucket
    deleted_keys_leave_no_trace_in_a_full_bucket
    named_buckets
    buckets_that_are_not_ours
    without_provisioning
    a_deleted_bucket_comes_back
    many_first_uses_at_once
    a_thread_without_a_reactor
);

mod cases {
    use std::num::NonZeroU64;

    use nex_host_services::Config;
    use nex_runtime::host_services::{HostErrorCode as Code, HostRequest, HostServices as _, Operation};

    use crate::world::*;

    pub(super) async fn all_bytes_and_none_survive(world: World) {
        let services = world.services().await;
        for (key, value) in [("all", all_bytes()), ("none", Vec::new()), ("big", content(100_000))] {
            services.kv_set(None, key, value.clone()).await.unwrap();
            assert_eq!(services.kv_get(None, key).await.unwrap(), value, "{key}");
        }
    }

    pub(super) async fn missing_things(world: World) {
        let services = world.services().await;
        assert_eq!(services.kv_keys(None).await.unwrap(), [""; 0]);
        assert_code(services.kv_get(None, "nothing").await, Code::NotFound);
        services.kv_delete(None, "nothing").await.unwrap();
        services.kv_set(None, "k", "v").await.unwrap();
        services.kv_delete(None, "k").await.unwrap();
        services.kv_delete(None, "k").await.unwrap();
        assert_code(services.kv_get(None, "k").await, Code::NotFound);
        assert_eq!(services.kv_keys(None).await.unwrap(), [""; 0]);
    }

    pub(super) async fn keys_are_live_and_sorted(world: World) {
        let services = world.services().await;
        for key in ["b", "a", "c.d/e=f", "B", "gone", "_1-2"] {
            services.kv_set(None, key, key).await.unwrap();
        }
        services.kv_set(None, "a", "again").await.unwrap();
        services.kv_delete(None, "gone").await.unwrap();
        assert_eq!(
            services.kv_keys(None).await.unwrap(),
            ["B", "_1-2", "a", "b", "c.d/e=f"]
        );
        assert_eq!(services.kv_get(None, "a").await.unwrap(), "again");
        // More than one batch of a listing.
        for chunk in (0..1_200).collect::<Vec<_>>().chunks(100) {
            let sets = chunk.iter().map(|i| {
                let services = services.clone();
                let key = format!("many.{i:04}");
                async move { services.kv_set(Some("many"), &key, "").await.map(drop) }
            });
            for result in together(sets).await {
                result.unwrap();
            }
        }
        let many = services.kv_keys(Some("many")).await.unwrap();
        assert_eq!(many.len(), 1_200);
        assert!(many.is_sorted());
    }

    pub(super) async fn revisions_grow(world: World) {
        let services = world.services().await;
        let first = services.kv_set(None, "a", "1").await.unwrap();
        let second = services.kv_set(None, "b", "1").await.unwrap();
        let third = services.kv_set(None, "a", "2").await.unwrap();
        assert!(first < second && second < third);
    }

    pub(super) async fn buckets_are_apart(world: World) {
        let a = world.services_of("ns", "a", Config::default()).await;
        let b = world.services_of("ns", "b", Config::default()).await;
        // The plain names of these two would be the same.
        let c = world.services_of("ns_a", "b", Config::default()).await;
        let d = world.services_of("ns", "a_b", Config::default()).await;
        for (services, value) in [(&a, "a"), (&b, "b"), (&c, "c"), (&d, "d")] {
            services.kv_set(None, "k", value).await.unwrap();
        }
        for (services, value) in [(&a, "a"), (&b, "b"), (&c, "c"), (&d, "d")] {
            assert_eq!(services.kv_get(None, "k").await.unwrap(), value);
        }
    }

    pub(super) async fn malformed_names(world: World) {
        let services = world.services().await;
        for key in ["", ".", "a.", ".a", "a..b", "a b", "a*", ">", "ä"] {
            assert_code(services.kv_get(None, key).await, Code::InvalidArgument);
            assert_code(services.kv_set(None, key, "v").await, Code::InvalidArgument);
            assert_code(services.kv_delete(None, key).await, Code::InvalidArgument);
        }
        for bucket in ["", "a.b", "a b", "*"] {
            assert_code(services.kv_keys(Some(bucket)).await, Code::InvalidArgument);
        }
    }

    pub(super) async fn a_full_bucket(world: World) {
        let services = world.services().await;
        services.kv_set(None, "half", content(300_000)).await.unwrap();
        assert_code(
            services.kv_set(None, "half2", content(300_000)).await,
            Code::LimitExceeded,
        );
        // What was there still is, and there is room for less.
        assert_eq!(services.kv_get(None, "half").await.unwrap(), content(300_000));
        services.kv_set(None, "small", content(100_000)).await.unwrap();
        // A value no server takes.
        let huge = content(2 * 1024 * 1024);
        assert_code(services.kv_set(None, "huge", huge).await, Code::LimitExceeded);
        services.kv_delete(None, "half").await.unwrap();
        services.kv_set(None, "half2", content(300_000)).await.unwrap();
    }

    pub(super) async fn deleted_keys_leave_no_trace_in_a_full_bucket(world: World) {
        let mut config = Config::default();
        config.kv.config.max_bytes = NonZeroU64::new(20_000).unwrap();
        let services = world.configured(config).await;
        for i in 0..400 {
            let key = format!("session.{i}");
            services.kv_set(None, &key, "x").await.unwrap();
            services.kv_delete(None, &key).await.unwrap();
            services.kv_delete(None, &format!("never.{i}")).await.unwrap();
        }
        services.kv_set(None, "last", content(10_000)).await.unwrap();
        assert_eq!(services.kv_keys(None).await.unwrap(), ["last"]);
        // Deleting works even when not a byte is left.
        let (mut bytes, mut key) = (8_000, 0);
        while bytes > 0 {
            key += 1;
            if services
                .kv_set(None, &format!("fill.{key}"), content(bytes))
                .await
                .is_err()
            {
                bytes /= 2;
            }
        }
        services.kv_delete(None, "last").await.unwrap();
        services.kv_set(None, "last", "again").await.unwrap();
    }

    pub(super) async fn named_buckets(world: World) {
        let one = world.services_of("ns", "one", Config::default()).await;
        let two = world.services_of("other", "two", Config::default()).await;
        one.kv_set(Some("shared"), "k", "v").await.unwrap();
        assert_eq!(two.kv_get(Some("shared"), "k").await.unwrap(), "v");
        assert_code(one.kv_get(None, "k").await, Code::NotFound);
        one.kv_set(Some("hs_ns_one_kv"), "own", "by name").await.unwrap();
        assert_eq!(one.kv_get(None, "own").await.unwrap(), "by name");
    }

    pub(super) async fn buckets_that_are_not_ours(world: World) {
        let services = world.services().await;
        for bucket in ["hs_ns_other_kv", "hs_ns_wl_obj", "hs_", "NEXCLIFILES"] {
            assert_code(services.kv_get(Some(bucket), "k").await, Code::PermissionDenied);
            assert_code(services.kv_set(Some(bucket), "k", "v").await, Code::PermissionDenied);
            assert_code(services.kv_delete(Some(bucket), "k").await, Code::PermissionDenied);
            assert_code(services.kv_keys(Some(bucket)).await, Code::PermissionDenied);
        }
        let mut config = Config::default();
        config.kv.config.allowed_buckets = Some(vec!["listed".to_owned()]);
        let services = world.configured(config).await;
        services.kv_set(Some("listed"), "k", "v").await.unwrap();
        services.kv_set(None, "k", "v").await.unwrap();
        assert_code(services.kv_keys(Some("unlisted")).await, Code::PermissionDenied);
    }

    pub(super) async fn without_provisioning(world: World) {
        let mut config = Config::default();
        config.kv.config.auto_provision = false;
        let strict = world.configured(config).await;
        assert_code(strict.kv_keys(None).await, Code::NotFound);
        assert_code(strict.kv_set(Some("shared"), "k", "v").await, Code::NotFound);
        let other = world.services_of("ns", "other", Config::default()).await;
        other.kv_set(Some("shared"), "k", "v").await.unwrap();
        assert_eq!(strict.kv_get(Some("shared"), "k").await.unwrap(), "v");
    }

    pub(super) async fn a_deleted_bucket_comes_back(world: World) {
        let services = world.services().await;
        let policy = services.0.policy();
        let (kv, objects) = (policy.default_kv_bucket(), policy.default_object_bucket());
        for round in 0..4 {
            services.kv_set(None, "k", "v").await.unwrap();
            services.put(None, "o", "v").await.unwrap();
            world.delete_buckets(kv, objects).await;
            match round {
                0 => assert_code(services.kv_get(None, "k").await, Code::NotFound),
                1 => assert_eq!(services.kv_keys(None).await.unwrap(), [""; 0]),
                2 => services.kv_delete(None, "k").await.unwrap(),
                _ => assert!(services.kv_set(None, "k", "v").await.unwrap() > 0),
            }
        }
    }

    pub(super) async fn many_first_uses_at_once(world: World) {
        let mut nodes = Vec::new();
        for _ in 0..4 {
            nodes.push(world.services().await);
        }
        let writes = nodes
            .iter()
            .cycle()
            .take(32)
            .cloned()
            .enumerate()
            .map(|(i, node)| async move { node.kv_set(None, &format!("k{i:02}"), "v").await });
        for write in together(writes).await {
            write.unwrap();
        }
        assert_eq!(nodes[0].kv_keys(None).await.unwrap().len(), 32);
    }

    pub(super) async fn a_thread_without_a_reactor(world: World) {
        let services = world.services().await.0;
        let isolate = std::thread::spawn(move || {
            let call = |operation, payload: &'static str| {
                let payload = payload.into();
                futures::executor::block_on(services.call(HostRequest { operation, payload }))
            };
            let (bucket, key) = (None, "k".to_owned());
            call(
                Operation::KvSet {
                    bucket: bucket.clone(),
                    key: key.clone(),
                },
                "v",
            )
            .unwrap();
            let timeout_ms = Some(20);
            let silent = Operation::Request {
                subject: "nobody".into(),
                headers: vec![],
                timeout_ms,
            };
            assert_code(call(silent, ""), Code::NoResponders);
            call(Operation::KvGet { bucket, key }, "").unwrap().payload
        });
        let value = tokio::task::spawn_blocking(|| isolate.join()).await.unwrap().unwrap();
        assert_eq!(value, "v");
    }
}
