//! What only the NATS backends have: other clients, streams underneath, servers that go away.

use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, kv, object_store};
use nex_host_services::nats_server::{NatsServer, Options};
use nex_host_services::{Config, Policy, Services};
use nex_runtime::host_services::{HostErrorCode as Code, HostRequest, HostServices as _, Operation};
use tokio::io::AsyncReadExt as _;
use tokio::runtime::Handle;

use crate::world::*;

const KV: &str = "hs_ns_wl_kv";
const OBJECTS: &str = "hs_ns_wl_obj";

async fn jetstream(world: &World) -> jetstream::Context {
    jetstream::new(world.client().await)
}

async fn messages_in(jetstream: &jetstream::Context, stream: &str) -> u64 {
    jetstream.get_stream(stream).await.unwrap().cached_info().state.messages
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_clients_read_what_functions_write_and_the_other_way_round() {
    let world = World::nats();
    let services = world.services().await;
    let foreign = jetstream(&world).await;

    services.kv_set(None, "ours", all_bytes()).await.unwrap();
    let bucket = foreign.get_key_value(KV).await.unwrap();
    assert_eq!(bucket.get("ours").await.unwrap().unwrap(), all_bytes());
    bucket.put("theirs", all_bytes().into()).await.unwrap();
    assert_eq!(services.kv_get(None, "theirs").await.unwrap(), all_bytes());
    bucket.purge("ours").await.unwrap();
    assert_code(services.kv_get(None, "ours").await, Code::NotFound);
    assert_eq!(services.kv_keys(None).await.unwrap(), ["theirs"]);

    let large = content(400_000);
    services.put(None, "ours", large.clone()).await.unwrap();
    let bucket = foreign.get_object_store(OBJECTS).await.unwrap();
    let mut read = Vec::new();
    bucket.get("ours").await.unwrap().read_to_end(&mut read).await.unwrap();
    assert_eq!(read, large);
    bucket.delete("ours").await.unwrap();
    assert_code(services.get(None, "ours").await, Code::NotFound);
    bucket.put("theirs", &mut large.as_slice()).await.unwrap();
    assert_eq!(services.get(None, "theirs").await.unwrap(), large);
    services.delete(None, "theirs").await.unwrap();
    assert!(bucket.info("theirs").await.unwrap().deleted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_buckets_have_the_size_limit_and_old_ones_stay_as_they_are() {
    let world = World::nats();
    let services = world.services().await;
    let foreign = jetstream(&world).await;
    foreign
        .create_key_value(kv::Config {
            bucket: "old".into(),
            history: 5,
            ..Default::default()
        })
        .await
        .unwrap();
    foreign
        .create_object_store(object_store::Config {
            bucket: "old".into(),
            ..Default::default()
        })
        .await
        .unwrap();

    for bucket in [None, Some("old")] {
        services.kv_set(bucket, "k", "v").await.unwrap();
        services.put(bucket, "o", "v").await.unwrap();
    }
    for (stream, max_bytes) in [
        (format!("KV_{KV}"), 524_288),
        (format!("OBJ_{OBJECTS}"), 524_288),
        ("KV_old".to_owned(), -1),
        ("OBJ_old".to_owned(), -1),
    ] {
        let stream = foreign.get_stream(&stream).await.unwrap();
        assert_eq!(stream.cached_info().config.max_bytes, max_bytes);
    }
    let old = foreign.get_stream("KV_old").await.unwrap();
    assert_eq!(old.cached_info().config.max_messages_per_subject, 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_disagree_on_the_limit_share_the_bucket_of_the_first() {
    let world = World::nats();
    let mut nodes = Vec::new();
    for i in 1..=6 {
        let mut config = Config::default();
        config.kv.config.max_bytes = NonZeroU64::new(i * 100_000).unwrap();
        config.objectstore.config.max_bytes = NonZeroU64::new(i * 100_000).unwrap();
        nodes.push(world.configured(config).await);
    }
    let writes = nodes.iter().cloned().enumerate().map(|(i, node)| async move {
        node.kv_set(None, &format!("k{i}"), "v").await.unwrap();
        node.put(None, &format!("o{i}"), "v").await.unwrap();
    });
    together(writes).await;
    assert_eq!(nodes[0].kv_keys(None).await.unwrap().len(), 6);
    assert_eq!(nodes[0].list(None).await.unwrap().len(), 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_of_replaced_deleted_and_failed_objects() {
    let world = World::nats();
    let services = world.services().await;
    let foreign = jetstream(&world).await;
    let stream = format!("OBJ_{OBJECTS}");
    let puts = (0..12u8).map(|writer| {
        let services = services.clone();
        async move { services.put(None, "o", vec![writer; 1_000]).await.unwrap() }
    });
    together(puts).await;
    // One chunk and one message of metadata.
    assert_eq!(messages_in(&foreign, &stream).await, 2);
    assert_code(services.put(None, "large", content(600_000)).await, Code::LimitExceeded);
    assert_eq!(messages_in(&foreign, &stream).await, 2);

    let deletes = (0..4).map(|_| {
        let services = services.clone();
        async move { services.delete(None, "o").await.is_ok() }
    });
    let deleted = together(deletes).await;
    assert_eq!(
        deleted.iter().filter(|done| **done).count(),
        1,
        "one delete finds the object"
    );
    // The marker.
    assert_eq!(messages_in(&foreign, &stream).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abandoned_upload_is_removed() {
    let world = World::nats();
    let mut config = Config::default();
    config.objectstore.config.max_bytes = NonZeroU64::new(200 << 20).unwrap();
    config.objectstore.config.max_object_bytes = NonZeroUsize::new(100 << 20).unwrap();
    let services = world.configured(config).await;
    services.list(None).await.unwrap();
    let foreign = jetstream(&world).await;
    let stream = format!("OBJ_{OBJECTS}");

    let operation = Operation::ObjectPut {
        bucket: None,
        name: "o".to_owned(),
    };
    let payload = content(64 << 20).into();
    let call = services.0.call(HostRequest { operation, payload });
    let deadline = Instant::now() + PATIENCE;
    while messages_in(&foreign, &stream).await == 0 {
        assert!(Instant::now() < deadline, "no chunk arrives");
    }
    drop(call);
    while messages_in(&foreign, &stream).await > 0 {
        assert!(Instant::now() < deadline, "chunks stay");
    }
    assert_code(services.get(None, "o").await, Code::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_leave_no_consumers() {
    let world = World::nats();
    let services = world.services().await;
    services.kv_set(None, "k", "v").await.unwrap();
    services.put(None, "o", "v").await.unwrap();
    for _ in 0..10 {
        services.kv_keys(None).await.unwrap();
        services.list(None).await.unwrap();
    }
    let foreign = jetstream(&world).await;
    for stream in [format!("KV_{KV}"), format!("OBJ_{OBJECTS}")] {
        let stream = foreign.get_stream(&stream).await.unwrap();
        assert_eq!(stream.cached_info().state.consumer_count, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_do_not_lead_out_of_a_bucket() {
    let world = World::nats();
    let victim = world.services_of("ns", "victim", Config::default()).await;
    victim.put(None, "secret", "secret").await.unwrap();
    let services = world.services().await;
    services.list(None).await.unwrap();
    let foreign = jetstream(&world).await;
    let own = foreign.get_object_store(OBJECTS).await.unwrap();
    let theirs = foreign.get_object_store("hs_ns_victim_obj").await.unwrap();
    let secret = theirs.get("secret").await.unwrap();
    own.add_link("link", &secret).await.unwrap();
    assert_code(services.get(None, "link").await, Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_jetstream_is_unavailable() {
    let options = Options {
        no_jetstream: true,
        ..Options::default()
    };
    let world = World::Nats(NatsServer::start_with(options).unwrap());
    let services = world.services().await;
    assert_code(services.kv_get(None, "k").await, Code::Unavailable);
    assert_code(services.list(None).await, Code::Unavailable);
    services.publish("messaging.works", vec![], "").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_server_is_unavailable_in_time() {
    let world = World::nats();
    let mut config = Config::default();
    let soon = NonZeroU32::new(300).unwrap();
    config.kv.config.timeout_ms = soon;
    config.objectstore.config.timeout_ms = soon;
    config.messaging.config.request_timeout_ms = soon;
    let services = world.configured(config).await;
    services.kv_set(None, "k", "v").await.unwrap();
    services.put(None, "o", "v").await.unwrap();
    drop(world);
    let started = Instant::now();
    assert_code(services.kv_get(None, "k").await, Code::Unavailable);
    assert_code(services.kv_set(None, "k", "v").await, Code::Unavailable);
    assert_code(services.get(None, "o").await, Code::Unavailable);
    assert_code(services.request("a", vec![], "", None).await, Code::Unavailable);
    assert_code(services.request_many("a", "", Some(300), None).await, Code::Unavailable);
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_runtime_that_ended_is_unavailable() {
    let world = World::nats();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let services = runtime.block_on(async {
        let client = world.client().await;
        let jetstream = jetstream::new(client.clone());
        let policy = Policy::new("ns", "wl", Config::default());
        Services::nats(client, jetstream, policy, Handle::current())
    });
    runtime.shutdown_background();
    let operation = Operation::KvKeys { bucket: None };
    let call = services.call(HostRequest {
        operation,
        payload: "".into(),
    });
    assert_code(futures::executor::block_on(call), Code::Unavailable);
}
