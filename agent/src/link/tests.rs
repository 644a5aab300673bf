//! The link against itself and against peers that mean harm.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use nex_runtime::engine::{EngineEvent, FunctionSpec, Limit, LimitHit, Limits, LoadError};
use nex_runtime::host_services::{
    HostError, HostErrorCode, HostRequest, HostResponse, HostResult, HttpMethod, MessageInfo, ObjectInfo, Operation,
};
use nex_runtime::invocation::{ErrorKind, InvokeError, Reply, Trigger};
use nex_runtime::logs::{LogLevel, LogLine};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::*;

const F: FunctionId = FunctionId(7);
const C: CallId = CallId(u64::MAX);

fn to_agent() -> Vec<NodeToAgent> {
    let headers = vec![("A".to_owned(), "1".to_owned()), ("A".to_owned(), "ü".to_owned())];
    let object = ObjectInfo {
        name: "o".into(),
        size: u64::MAX,
        description: Some("d".into()),
        ..ObjectInfo::default()
    };
    let results = [
        HostResult::Done,
        HostResult::Value,
        HostResult::Revision(3),
        HostResult::Keys(vec!["a".into(), "b".into()]),
        HostResult::Object(object.clone()),
        HostResult::Objects(vec![object]),
        HostResult::Messages(vec![MessageInfo {
            subject: "s".into(),
            headers: headers.clone(),
            len: 3,
        }]),
        HostResult::Http {
            status: 204,
            headers: headers.clone(),
        },
    ];
    let mut all = vec![
        NodeToAgent::HelloAck(HelloAck {
            agent_id: "a".into(),
            node_version: "0".into(),
        }),
        NodeToAgent::Deploy {
            function: F,
            spec: FunctionSpec {
                id: "id".into(),
                namespace: "ns".into(),
                name: "name".into(),
                workload_type: "v8".into(),
                source: Bytes::from_static(b"() => 1"),
                vars: BTreeMap::from([("K".into(), "V".into())]),
                limits: Limits::default(),
            },
        },
        NodeToAgent::Undeploy { function: F },
        NodeToAgent::Trigger {
            call: C,
            function: F,
            trigger: Trigger::default(),
        },
        NodeToAgent::Trigger {
            call: C,
            function: F,
            trigger: Trigger {
                subject: "a.b".into(),
                reply: Some("r".into()),
                headers,
                payload: payload(100_000),
            },
        },
        NodeToAgent::HostError {
            call: C,
            error: HostError::new(HostErrorCode::NotFound, "no"),
        },
        NodeToAgent::Ping { nonce: 9 },
        NodeToAgent::Drain,
    ];
    all.extend(results.map(|result| NodeToAgent::HostResult {
        call: C,
        response: HostResponse {
            result,
            payload: payload(300),
        },
    }));
    all
}

fn to_node() -> Vec<AgentToNode> {
    let bucket = Some("b".to_owned());
    let key = "k".to_owned();
    let operations = [
        Operation::KvGet {
            bucket: bucket.clone(),
            key: key.clone(),
        },
        Operation::KvSet {
            bucket: None,
            key: key.clone(),
        },
        Operation::KvDelete {
            bucket: None,
            key: key.clone(),
        },
        Operation::KvKeys { bucket: bucket.clone() },
        Operation::ObjectGet {
            bucket: bucket.clone(),
            name: key.clone(),
        },
        Operation::ObjectPut {
            bucket: None,
            name: key.clone(),
        },
        Operation::ObjectDelete {
            bucket: None,
            name: key,
        },
        Operation::ObjectList { bucket },
        Operation::Publish {
            subject: "s".into(),
            headers: Vec::new(),
        },
        Operation::Request {
            subject: "s".into(),
            headers: Vec::new(),
            timeout_ms: Some(1),
        },
        Operation::RequestMany {
            subject: "s".into(),
            headers: Vec::new(),
            timeout_ms: None,
            max_replies: Some(2),
        },
        Operation::Http {
            method: HttpMethod::Patch,
            url: "http://x/".into(),
            headers: vec![("H".into(), "v".into())],
            timeout_ms: None,
        },
    ];
    let reply = Reply {
        headers: vec![("H".into(), "v".into())],
        body: payload(256),
    };
    let mut all = vec![
        AgentToNode::Hello(Hello {
            agent_version: "0".into(),
            pid: 1,
            workload_types: vec!["v8".into()],
            capabilities: Vec::new(),
        }),
        AgentToNode::DeployResult {
            function: F,
            result: Ok(()),
        },
        AgentToNode::DeployResult {
            function: F,
            result: Err(LoadError::Timeout(Duration::from_millis(1))),
        },
        AgentToNode::Stream {
            call: C,
            reply: reply.clone(),
        },
        AgentToNode::Reply { call: C, reply },
        AgentToNode::ReplyError {
            call: C,
            error: InvokeError {
                kind: ErrorKind::Exception,
                message: "TypeError: x".into(),
                name: Some("TypeError".into()),
                stack: Some("at f".into()),
            },
        },
        AgentToNode::HostCancel { call: C },
        AgentToNode::Log {
            function: F,
            line: LogLine {
                level: LogLevel::Warn,
                text: "hm".into(),
            },
        },
        AgentToNode::Event {
            function: F,
            event: EngineEvent::LimitHit(LimitHit {
                limit: Limit::HeapBytes,
                allowed: 1,
                measured: 2,
            }),
        },
        AgentToNode::Event {
            function: F,
            event: EngineEvent::Condemned { message: "c".into() },
        },
        AgentToNode::Pong {
            nonce: 9,
            health: Health {
                condemned: true,
                in_flight: 1,
                functions: 2,
                hibernating: 4,
                instances: 5,
                rss_bytes: 3,
            },
        },
    ];
    all.extend(operations.map(|operation| AgentToNode::HostCall {
        call: C,
        function: F,
        request: HostRequest {
            operation,
            payload: payload(20_000),
        },
    }));
    all
}

/// So many bytes, of all values.
fn payload(len: usize) -> Bytes {
    (0..len).map(|i| (i % 256) as u8).collect()
}

fn show<M: Message>(messages: &[M]) -> Vec<String> {
    messages.iter().map(|message| format!("{message:?}")).collect()
}

/// The bytes of these messages on the wire.
async fn wire<M: Message>(messages: Vec<M>) -> Vec<u8> {
    let (mut far, near) = tokio::io::duplex(64 << 20);
    let (outbox, write) = Outbox::new(near);
    for message in messages {
        outbox.send(message).unwrap();
    }
    outbox.close();
    write.run().await.unwrap();
    let mut bytes = Vec::new();
    far.read_to_end(&mut bytes).await.unwrap();
    bytes
}

/// What a reader makes of these bytes, handed to it so many at a time.
async fn read<M: Message>(bytes: &[u8], step: usize) -> (Vec<M>, Result<(), LinkError>) {
    let mut reader = LinkReader::new(Drip(bytes.to_vec(), 0, step));
    let mut messages = Vec::new();
    loop {
        match reader.next().await {
            Ok(Some(message)) => messages.push(message),
            Ok(None) => return (messages, Ok(())),
            Err(error) => return (messages, Err(error)),
        }
    }
}

/// A stream that gives its bytes in small steps.
struct Drip(Vec<u8>, usize, usize);

impl AsyncRead for Drip {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let end = self.0.len().min(self.1 + self.2.min(buf.remaining()));
        buf.put_slice(&self.0[self.1..end]);
        self.1 = end;
        Poll::Ready(Ok(()))
    }
}

async fn round_trip<M: Message>(make: fn() -> Vec<M>) {
    let sent = show(&make());
    let bytes = wire(make()).await;
    for step in [1, 7, usize::MAX] {
        let (received, end) = read::<M>(&bytes, step).await;
        end.unwrap();
        assert_eq!(show(&received), sent);
    }
}

#[tokio::test]
async fn every_message_arrives_as_it_was_sent() {
    round_trip(to_agent).await;
    round_trip(to_node).await;
}

async fn truncate<M: Message>(make: fn() -> Vec<M>) {
    for i in 0..make().len() {
        let bytes = wire(vec![make().swap_remove(i)]).await;
        // Every cut in the header and the metadata, some in a long payload.
        let cuts = (0..bytes.len()).filter(|&cut| cut < 400 || cut % 977 == 0 || cut + 2 > bytes.len());
        for cut in cuts {
            let (received, end) = read::<M>(&bytes[..cut], usize::MAX).await;
            assert!(received.is_empty());
            match end {
                Ok(()) => assert_eq!(cut, 0),
                Err(LinkError::Truncated) => assert!(cut > 0),
                Err(other) => panic!("{other}"),
            }
        }
    }
}

#[tokio::test]
async fn a_stream_that_ends_anywhere_inside_a_frame_is_an_error() {
    truncate(to_agent).await;
    truncate(to_node).await;
}

/// Shortens each message's metadata and payload by changing the header alone: the frame is whole, its content is not.
async fn shorten<M: Message>(make: fn() -> Vec<M>) {
    for message in make() {
        let name = format!("{message:?}");
        let bytes = wire(vec![message]).await;
        let len = u32::from_le_bytes(bytes[..4].try_into().unwrap());
        let meta = u32::from_le_bytes(bytes[4..8].try_into().unwrap());
        for shorter in 0..meta {
            let mut bytes = bytes.clone();
            // The rest of the metadata becomes payload, or goes.
            bytes[4..8].copy_from_slice(&shorter.to_le_bytes());
            assert!(read::<M>(&bytes, usize::MAX).await.1.is_err(), "{name}");
            bytes[..4].copy_from_slice(&shorter.to_le_bytes());
            bytes.truncate(HEADER_LEN + shorter as usize);
            assert!(read::<M>(&bytes, usize::MAX).await.1.is_err(), "{name}");
        }
        let mut longer = bytes.clone();
        longer[..4].copy_from_slice(&(len + 1).to_le_bytes());
        longer[4..8].copy_from_slice(&(meta + 1).to_le_bytes());
        longer.insert(HEADER_LEN + meta as usize, 0);
        assert!(read::<M>(&longer, usize::MAX).await.1.is_err(), "{name}");
    }
}

#[tokio::test]
async fn metadata_that_is_short_or_has_something_left_over_is_an_error() {
    shorten(to_agent).await;
    shorten(to_node).await;
}

fn header(len: usize, meta: usize, id: u64, kind: u8, rest: [u8; 3]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend((len as u32).to_le_bytes());
    bytes.extend((meta as u32).to_le_bytes());
    bytes.extend(id.to_le_bytes());
    bytes.push(kind);
    bytes.extend(rest);
    bytes
}

async fn error_of<M: Message>(bytes: &[u8]) -> LinkError {
    read::<M>(bytes, usize::MAX).await.1.unwrap_err()
}

#[tokio::test]
async fn headers_are_checked_before_anything_else() {
    let max = AgentToNode::LIMITS;
    let huge = u32::MAX as usize;
    for (len, meta) in [
        (huge, 0),
        (huge, huge),
        (max.payload + 1, 0),
        (max.meta + 1, max.meta + 1),
    ] {
        // Kind 68 is a reply. The header alone is enough for a refusal.
        let error = error_of::<AgentToNode>(&header(len, meta, 1, 68, [0; 3])).await;
        assert!(matches!(error, LinkError::TooLarge { .. }), "{error}");
    }
    let error = error_of::<AgentToNode>(&header(3, 4, 1, 68, [0; 3])).await;
    assert!(matches!(error, LinkError::Header), "{error}");
    for rest in [[1, 0, 0], [0, 1, 0], [0, 0, 1]] {
        let error = error_of::<AgentToNode>(&header(0, 0, 1, 68, rest)).await;
        assert!(matches!(error, LinkError::Header), "{error}");
    }
    // A frame of the other direction is as unknown as any.
    for kind in [0, 4, 64, 75, 255] {
        let error = error_of::<AgentToNode>(&header(0, 0, 1, kind, [0; 3])).await;
        assert!(matches!(error, LinkError::Kind(k) if k == kind), "{error}");
    }
    let error = error_of::<AgentToNode>(&header(0, 0, 99, 65, [0; 3])).await;
    assert!(
        matches!(
            error,
            LinkError::Version {
                theirs: 99,
                ours: PROTOCOL_VERSION
            }
        ),
        "{error}"
    );
    // A payload where none belongs (Undeploy), and an id where none belongs (Drain).
    let mut bytes = header(1, 0, 1, 3, [0; 3]);
    bytes.push(0);
    assert!(matches!(
        error_of::<NodeToAgent>(&bytes).await,
        LinkError::Unexpected(3)
    ));
    let bytes = header(0, 0, 1, 8, [0; 3]);
    assert!(matches!(
        error_of::<NodeToAgent>(&bytes).await,
        LinkError::Unexpected(8)
    ));
}

#[tokio::test]
async fn random_bytes_and_random_damage_do_no_harm() {
    // xorshift: the same bytes in every run.
    let mut seed = 0x9E37_79B9_7F4A_7C15_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for _ in 0..2_000 {
        let len = (random() % 200) as usize;
        let bytes: Vec<u8> = (0..len).map(|_| random() as u8).collect();
        _ = read::<AgentToNode>(&bytes, usize::MAX).await;
        _ = read::<NodeToAgent>(&bytes, usize::MAX).await;
    }
    for i in 0..to_node().len() {
        let whole = wire(vec![to_node().swap_remove(i)]).await;
        for _ in 0..300 {
            let mut bytes = whole.clone();
            for _ in 0..=random() % 4 {
                // Mostly where it hurts: in the header and the metadata.
                let at = random() as usize % bytes.len().min(120);
                bytes[at] = random() as u8;
            }
            _ = read::<AgentToNode>(&bytes, usize::MAX).await;
        }
    }
}

/// A stream that notes the largest buffer it is offered and then gives nothing.
struct Greedy {
    header: Option<Vec<u8>>,
    largest: Arc<AtomicUsize>,
}

impl AsyncRead for Greedy {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        self.largest.fetch_max(buf.remaining(), Ordering::Relaxed);
        if let Some(header) = self.header.take() {
            buf.put_slice(&header);
        }
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn a_header_alone_does_not_make_the_reader_allocate_what_it_announces() {
    let largest = Arc::new(AtomicUsize::new(0));
    let mut reader = LinkReader::<AgentToNode>::new(Greedy {
        header: Some(header(AgentToNode::LIMITS.payload, 0, 1, 68, [0; 3])),
        largest: largest.clone(),
    });
    assert!(matches!(reader.next().await, Err(LinkError::Truncated)));
    assert!(largest.load(Ordering::Relaxed) < 9 << 20);
}

#[tokio::test]
async fn payloads_are_cut_out_of_the_read_buffer() {
    let bytes = wire(vec![
        AgentToNode::Reply {
            call: C,
            reply: payload(1_000).into(),
        },
        AgentToNode::Reply {
            call: C,
            reply: payload(1_000).into(),
        },
    ])
    .await;
    let (messages, end) = read::<AgentToNode>(&bytes, usize::MAX).await;
    end.unwrap();
    let [
        AgentToNode::Reply { reply: first, .. },
        AgentToNode::Reply { reply: second, .. },
    ] = &messages[..]
    else {
        panic!("{messages:?}");
    };
    let distance = second.body.as_ptr() as usize - first.body.as_ptr() as usize;
    assert_eq!(distance, bytes.len() / 2, "both are slices of one buffer");
}

/// A stream that counts its writes and takes all of them, or nothing.
struct Sink {
    writes: Arc<AtomicUsize>,
    takes: bool,
}

impl AsyncWrite for Sink {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        if !self.takes {
            return Poll::Pending;
        }
        self.writes.fetch_add(1, Ordering::Relaxed);
        Poll::Ready(Ok(buf.len()))
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let all: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
        self.poll_write(cx, &all)
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn what_is_queued_leaves_in_one_write() {
    let writes = Arc::new(AtomicUsize::new(0));
    let (outbox, write) = Outbox::new(Sink {
        writes: writes.clone(),
        takes: true,
    });
    for nonce in 0..100 {
        outbox.send(NodeToAgent::Ping { nonce }).unwrap();
    }
    outbox
        .send(NodeToAgent::HostResult {
            call: C,
            response: HostResponse {
                result: HostResult::Value,
                payload: payload(1 << 20),
            },
        })
        .unwrap();
    outbox.close();
    write.run().await.unwrap();
    assert_eq!(writes.load(Ordering::Relaxed), 1);
    assert_eq!(outbox.waiting(), 0);
    assert_eq!(outbox.send(NodeToAgent::Drain), Err(SendError::Closed));
}

#[tokio::test]
async fn a_lone_message_is_written_by_its_sender() {
    let writes = Arc::new(AtomicUsize::new(0));
    let (outbox, _write) = Outbox::new(Sink {
        writes: writes.clone(),
        takes: true,
    });
    // The writing task is not even running.
    outbox.send_now(NodeToAgent::Drain, usize::MAX).unwrap();
    assert_eq!(writes.load(Ordering::Relaxed), 1);
    assert_eq!(outbox.waiting(), 0);
}

fn stuck() -> (Outbox<NodeToAgent>, WriteTask) {
    Outbox::new(Sink {
        writes: Arc::default(),
        takes: false,
    })
}

#[tokio::test]
async fn senders_are_bounded_when_the_peer_does_not_read() {
    let (outbox, write) = stuck();
    let write = tokio::spawn(write.run());
    let ping = || NodeToAgent::Ping { nonce: 1 };
    // Room is asked for before a message, not with it, so that one message of any size fits.
    outbox.try_send(ping(), 1).unwrap();
    assert_eq!(outbox.try_send(ping(), 1), Err(SendError::Full));
    outbox.send(ping()).unwrap();
    assert_eq!(outbox.waiting(), 2 * HEADER_LEN);
    let patience = Duration::from_millis(1);
    assert_eq!(outbox.send_blocking(ping(), 1, patience), Err(SendError::Full));
    {
        let waiting = outbox.send_when_room(ping(), 1);
        tokio::pin!(waiting);
        assert!(futures::poll!(waiting.as_mut()).is_pending());
    }
    // Whoever waits learns that the link is gone.
    let waiting = tokio::spawn({
        let outbox = outbox.clone();
        async move { outbox.send_when_room(NodeToAgent::Drain, 1).await }
    });
    tokio::task::yield_now().await;
    write.abort();
    assert_eq!(waiting.await.unwrap(), Err(SendError::Closed));
    assert_eq!(outbox.send(ping()), Err(SendError::Closed));
}

#[tokio::test]
async fn whoever_waits_for_room_goes_on_when_there_is_some() {
    let (far, near) = tokio::io::duplex(64);
    let (outbox, write) = Outbox::new(near);
    tokio::spawn(write.run());
    let count = 1_000;
    let sender = tokio::spawn(async move {
        for nonce in 0..count {
            outbox.send_when_room(NodeToAgent::Ping { nonce }, 100).await.unwrap();
        }
        outbox.close();
    });
    let mut reader = LinkReader::<NodeToAgent>::new(far);
    let mut next = 0;
    while let Some(message) = reader.next().await.unwrap() {
        assert!(matches!(message, NodeToAgent::Ping { nonce } if nonce == next));
        next += 1;
    }
    assert_eq!(next, count);
    sender.await.unwrap();
}

#[test]
fn blocking_senders_wait_for_room() {
    let (far, near) = std::os::unix::net::UnixStream::pair().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _in_runtime = runtime.enter();
    far.set_nonblocking(true).unwrap();
    near.set_nonblocking(true).unwrap();
    let far = tokio::net::UnixStream::from_std(far).unwrap();
    let near = tokio::net::UnixStream::from_std(near).unwrap();
    let (outbox, write) = Outbox::new(near);
    runtime.spawn(write.run());
    let received = runtime.spawn(async move {
        let mut reader = LinkReader::<AgentToNode>::new(far);
        let mut bytes = 0;
        while let Some(message) = reader.next().await.unwrap() {
            let AgentToNode::Stream { reply, .. } = message else {
                panic!("{message:?}");
            };
            bytes += reply.body.len();
        }
        bytes
    });
    for _ in 0..200 {
        let reply = payload(100_000).into();
        let message = AgentToNode::Stream { call: C, reply };
        outbox.send_blocking(message, 1 << 20, Duration::from_secs(60)).unwrap();
        assert!(outbox.waiting() < (1 << 20) + 200_000);
    }
    outbox.close();
    assert_eq!(runtime.block_on(received).unwrap(), 20_000_000);
}

#[test]
fn messages_beyond_the_limits_are_not_sent() {
    let (outbox, _write) = Outbox::new(Sink {
        writes: Arc::default(),
        takes: true,
    });
    let headers = vec![("h".to_owned(), "x".repeat(AgentToNode::LIMITS.meta))];
    let reply = Reply {
        headers,
        body: Bytes::new(),
    };
    let sent = outbox.send(AgentToNode::Reply { call: C, reply });
    assert_eq!(sent, Err(SendError::TooLarge));
    let reply = Bytes::from(vec![0; AgentToNode::LIMITS.payload + 1]).into();
    let sent = outbox.send(AgentToNode::Reply { call: C, reply });
    assert_eq!(sent, Err(SendError::TooLarge));
    assert_eq!(outbox.waiting(), 0, "nothing of them stays behind");
}
