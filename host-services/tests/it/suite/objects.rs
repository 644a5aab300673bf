//! Object store cases.

super::in_every_world!(cases:
    all_bytes_and_none_survive
    any_name
    missing_things
    what_is_known_of_an_object
    put_replaces
    buckets_are_apart
    malformed_names
    a_full_bucket
    deleted_objects_leave_no_trace_in_a_full_bucket
    more_than_a_function_may_hold
    named_buckets
    buckets_that_are_not_ours
    without_provisioning
    a_deleted_bucket_comes_back
    many_first_uses_at_once
    readers_and_writers_at_once
);

mod cases {
    use std::num::{NonZeroU64, NonZeroUsize};

    use nex_host_services::Config;
    use nex_runtime::host_services::HostErrorCode as Code;

    use crate::world::*;

    pub(super) async fn all_bytes_and_none_survive(world: World) {
        let services = world.services().await;
        let chunk = 128 * 1024;
        let one_chunk = content(chunk);
        let two_chunks = content(chunk + 1);
        for (name, value) in [
            ("all", all_bytes()),
            ("none", vec![]),
            ("one", one_chunk),
            ("two", two_chunks),
        ] {
            let info = services.put(None, name, value.clone()).await.unwrap();
            assert_eq!(info.size, value.len() as u64);
            assert_eq!(info.chunks, value.len().div_ceil(chunk) as u64);
            assert_eq!(services.get(None, name).await.unwrap(), value, "{name}");
        }
    }

    pub(super) async fn any_name(world: World) {
        let services = world.services().await;
        let names = ["a b", "a/b.txt", "*.>", "ünïcödé 日本", "..", "\n"];
        for name in names {
            services.put(None, name, name).await.unwrap();
            assert_eq!(services.get(None, name).await.unwrap(), name);
        }
        let listed = services.list(None).await.unwrap();
        let mut sorted = names;
        sorted.sort_unstable();
        assert_eq!(listed.iter().map(|info| info.name.as_str()).collect::<Vec<_>>(), sorted);
    }

    pub(super) async fn missing_things(world: World) {
        let services = world.services().await;
        assert_eq!(services.list(None).await.unwrap(), []);
        assert_code(services.get(None, "nothing").await, Code::NotFound);
        assert_code(services.delete(None, "nothing").await, Code::NotFound);
        services.put(None, "o", "v").await.unwrap();
        services.delete(None, "o").await.unwrap();
        assert_code(services.delete(None, "o").await, Code::NotFound);
        assert_code(services.get(None, "o").await, Code::NotFound);
        assert_eq!(services.list(None).await.unwrap(), []);
        services.put(None, "o", "back").await.unwrap();
        assert_eq!(services.get(None, "o").await.unwrap(), "back");
    }

    pub(super) async fn what_is_known_of_an_object(world: World) {
        let services = world.services().await;
        let info = services.put(None, "hello", "hello").await.unwrap();
        assert_eq!(info.name, "hello");
        assert_eq!(info.bucket, "hs_ns_wl_obj");
        assert_eq!((info.size, info.chunks), (5, 1));
        let digest = "SHA-256=LPJNul-wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=";
        assert_eq!(info.digest, digest);
        assert_eq!(info.description, None);
        assert!(!info.nuid.is_empty());
        let stored = async_nats::datetime::parse_rfc3339(&info.mtime).unwrap();
        assert!((async_nats::datetime::now() - stored).abs().whole_seconds() < 60);
        assert_eq!(services.list(None).await.unwrap(), [info]);
    }

    pub(super) async fn put_replaces(world: World) {
        let services = world.services().await;
        let first = services.put(None, "o", content(150_000)).await.unwrap();
        let second = services.put(None, "o", "short").await.unwrap();
        assert_ne!(first.nuid, second.nuid);
        assert_eq!(services.get(None, "o").await.unwrap(), "short");
        assert_eq!(services.list(None).await.unwrap(), [second]);
        // No version but the last takes room: 20 times 150 KB are more than the bucket has.
        for _ in 0..20 {
            services.put(None, "o", content(150_000)).await.unwrap();
        }
    }

    pub(super) async fn buckets_are_apart(world: World) {
        let a = world.services_of("ns", "a", Config::default()).await;
        let b = world.services_of("ns", "b", Config::default()).await;
        a.put(None, "o", "a").await.unwrap();
        assert_code(b.get(None, "o").await, Code::NotFound);
    }

    pub(super) async fn malformed_names(world: World) {
        let services = world.services().await;
        let long = "x".repeat(2_000);
        for name in ["", &long] {
            assert_code(services.get(None, name).await, Code::InvalidArgument);
            assert_code(services.put(None, name, "v").await, Code::InvalidArgument);
            assert_code(services.delete(None, name).await, Code::InvalidArgument);
        }
        assert_code(services.list(Some("a.b")).await, Code::InvalidArgument);
    }

    pub(super) async fn a_full_bucket(world: World) {
        let services = world.services().await;
        services.put(None, "half", content(300_000)).await.unwrap();
        // A failed upload leaves nothing behind, so it can fail as often as it likes.
        for _ in 0..5 {
            assert_code(services.put(None, "half2", content(300_000)).await, Code::LimitExceeded);
        }
        assert_eq!(services.get(None, "half").await.unwrap(), content(300_000));
        services.put(None, "small", content(150_000)).await.unwrap();
        services.delete(None, "half").await.unwrap();
        services.put(None, "half2", content(300_000)).await.unwrap();
    }

    pub(super) async fn deleted_objects_leave_no_trace_in_a_full_bucket(world: World) {
        let mut config = Config::default();
        config.objectstore.config.max_bytes = NonZeroU64::new(30_000).unwrap();
        let services = world.configured(config).await;
        for i in 0..150 {
            let name = format!("upload {i}");
            services.put(None, &name, "x").await.unwrap();
            services.delete(None, &name).await.unwrap();
        }
        services.put(None, "last", content(15_000)).await.unwrap();
        // Deleting works even when not a byte is left.
        let (mut bytes, mut name) = (10_000, 0);
        while bytes > 0 {
            name += 1;
            if services
                .put(None, &format!("fill {name}"), content(bytes))
                .await
                .is_err()
            {
                bytes /= 2;
            }
        }
        services.delete(None, "last").await.unwrap();
        assert_code(services.get(None, "last").await, Code::NotFound);
        services.put(None, "last", "again").await.unwrap();
    }

    pub(super) async fn more_than_a_function_may_hold(world: World) {
        let mut config = Config::default();
        config.objectstore.config.max_object_bytes = NonZeroUsize::new(1_000).unwrap();
        let small = world.configured(config).await;
        assert_code(small.put(None, "o", content(1_001)).await, Code::LimitExceeded);
        let large = world.services().await;
        large.put(None, "o", content(1_001)).await.unwrap();
        assert_code(small.get(None, "o").await, Code::LimitExceeded);
        large.put(None, "o", content(1_000)).await.unwrap();
        assert_eq!(small.get(None, "o").await.unwrap(), content(1_000));
    }

    pub(super) async fn named_buckets(world: World) {
        let one = world.services_of("ns", "one", Config::default()).await;
        let two = world.services_of("other", "two", Config::default()).await;
        one.put(Some("shared"), "o", "v").await.unwrap();
        assert_eq!(two.get(Some("shared"), "o").await.unwrap(), "v");
        assert_code(one.get(None, "o").await, Code::NotFound);
    }

    pub(super) async fn buckets_that_are_not_ours(world: World) {
        let services = world.services().await;
        for bucket in ["hs_ns_other_obj", "hs_ns_wl_kv", "NEXCLIFILES"] {
            assert_code(services.get(Some(bucket), "o").await, Code::PermissionDenied);
            assert_code(services.put(Some(bucket), "o", "v").await, Code::PermissionDenied);
            assert_code(services.delete(Some(bucket), "o").await, Code::PermissionDenied);
            assert_code(services.list(Some(bucket)).await, Code::PermissionDenied);
        }
    }

    pub(super) async fn without_provisioning(world: World) {
        let mut config = Config::default();
        config.objectstore.config.auto_provision = false;
        let services = world.configured(config).await;
        assert_code(services.list(None).await, Code::NotFound);
        assert_code(services.put(None, "o", "v").await, Code::NotFound);
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
                0 => assert_code(services.get(None, "o").await, Code::NotFound),
                1 => assert_eq!(services.list(None).await.unwrap(), []),
                2 => assert_code(services.delete(None, "o").await, Code::NotFound),
                _ => assert_eq!(services.put(None, "o", "v").await.unwrap().size, 1),
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
            .take(16)
            .cloned()
            .enumerate()
            .map(|(i, node)| async move { node.put(None, &format!("o{i:02}"), "v").await });
        for write in together(writes).await {
            write.unwrap();
        }
        assert_eq!(nodes[0].list(None).await.unwrap().len(), 16);
    }

    pub(super) async fn readers_and_writers_at_once(world: World) {
        let services = world.services().await;
        services.put(None, "o", vec![0; 1_000]).await.unwrap();
        let work = (1..=6u8).map(|writer| {
            let services = services.clone();
            async move {
                for _ in 0..10 {
                    services.put(None, "o", vec![writer; 1_000]).await.unwrap();
                    // Whole versions only, never a missing or mixed one.
                    let read = services.get(None, "o").await.unwrap();
                    assert_eq!(read.len(), 1_000);
                    assert!(read.iter().all(|byte| *byte == read[0]));
                }
            }
        });
        together(work).await;
        assert_eq!(services.list(None).await.unwrap().len(), 1);
    }
}
