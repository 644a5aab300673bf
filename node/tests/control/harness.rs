//! A server, nodes and a publisher for one test; and an engine whose functions are one word each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, HeaderMap, Message, Subscriber};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::{BoxFuture, FutureExt as _};
use nex_host_services::nats_server::{NatsServer, Options};
use nex_node::claims::{Claims, hex_sha256};
use nex_node::connection::Connection;
use nex_node::control::messages::{DeployRequest, DeployResponse, StopRequest, StopResponse};
use nex_node::control::{ControlClient, ControlError, Location};
use nex_node::limits::LimitSet;
use nex_node::{Node, NodeConfig, environment};
use nex_runtime::engine::{Engine, Function, FunctionHost, FunctionSpec, LoadError};
use nex_runtime::invocation::{ErrorKind, InvokeError, Reply, ReplySink, Trigger};
use nex_runtime::logs::{LogLevel, LogLine};
use nkeys::{KeyPair, XKey};
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::time::timeout;

pub(crate) const BUCKET: &str = "testObjBucket";

/// Longest wait for what must come; on a busy machine everything takes longer than one thinks.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Runs functions whose source is one word, see [`OneWord`].
#[derive(Debug)]
pub(crate) struct OneWordEngine {
    /// Calls of `hold` end when permits are added.
    pub(crate) held: Arc<Semaphore>,
}

/// `echo` replies with the payload, `vars` with its environment as JSON, `limits` with its limits, `node WORD` with WORD, `stream` three times,
/// `throw` throws, `huge` replies with more than the server takes, `header` with an invalid header, `forget` never
/// replies, `hold` replies when it is released, `log` logs and replies with nothing.
#[derive(Debug)]
struct OneWord {
    spec: FunctionSpec,
    host: FunctionHost,
    held: Arc<Semaphore>,
}

impl Engine for OneWordEngine {
    fn workload_types(&self) -> &'static [&'static str] {
        &["v8", "wasm", "native"]
    }

    fn load(&self, spec: FunctionSpec, host: FunctionHost) -> BoxFuture<'static, Result<Arc<dyn Function>, LoadError>> {
        let held = self.held.clone();
        async move {
            if spec.source.starts_with(b"syntax") {
                return Err(LoadError::Syntax(
                    "SyntaxError: Unexpected identifier 'x' at echo.js:1:8".to_owned(),
                ));
            }
            Ok(Arc::new(OneWord { spec, host, held }) as Arc<dyn Function>)
        }
        .boxed()
    }
}

impl Function for OneWord {
    fn invoke(&self, trigger: Trigger, mut replies: Box<dyn ReplySink>) {
        let source = std::str::from_utf8(&self.spec.source).unwrap_or_default();
        let body = |text: &str| Ok(Reply::from(Bytes::from(text.to_owned())));
        match source.split_once(' ').unwrap_or((source, "")) {
            ("echo", _) => replies.finish(Ok(Reply {
                headers: trigger.headers,
                body: trigger.payload,
            })),
            ("vars", _) => replies.finish(body(&serde_json::to_string(&self.spec.vars).unwrap())),
            ("limits", _) => replies.finish(body(
                &serde_json::to_string(&LimitSet::complete(&self.spec.limits)).unwrap(),
            )),
            ("word", word) => replies.finish(body(word)),
            ("stream", _) => {
                for part in ["1", "2", "3"] {
                    replies.stream(Reply::from(Bytes::from_static(part.as_bytes())));
                }
                replies.finish(Ok(Reply::default()));
            }
            ("throw", _) => replies.finish(Err(InvokeError {
                kind: ErrorKind::Exception,
                message: "TypeError: first line\r\nsecond line".to_owned(),
                name: Some("TypeError".to_owned()),
                stack: Some("TypeError: first line\n    at echo.js:3:7".to_owned()),
            })),
            ("huge", _) => {
                let limit = usize::try_from(self.spec.limits.reply_bytes).unwrap();
                replies.finish(Ok(Reply::from(Bytes::from(vec![b'x'; limit + 1]))));
            }
            ("header", _) => replies.finish(Ok(Reply {
                headers: vec![("X-Bad".to_owned(), "a\r\nb".to_owned())],
                body: Bytes::new(),
            })),
            ("forget", _) => drop(replies),
            ("hold", _) => {
                let held = self.held.clone();
                tokio::spawn(async move {
                    held.acquire().await.unwrap().forget();
                    replies.finish(Ok(Reply::from(trigger.payload)));
                });
            }
            ("log", _) => {
                self.host.logs.log(LogLine {
                    level: LogLevel::Warn,
                    text: "hello from the function".to_owned(),
                });
                replies.finish(Ok(Reply::default()));
            }
            _ => panic!("no such function: {source}"),
        }
    }
}

/// A server with an object store, a publisher with keys, and a connection.
pub(crate) struct World {
    pub(crate) server: NatsServer,
    /// With the node's user in it.
    pub(crate) url: String,
    pub(crate) client: Client,
    pub(crate) issuer: KeyPair,
    pub(crate) xkey: XKey,
    pub(crate) held: Arc<Semaphore>,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with_server(Options::default(), "").await
    }

    /// With a server that has options, and the node's user for it: `name:password@`.
    pub(crate) async fn with_server(options: Options, user: &str) -> Self {
        let server = NatsServer::start_with(options).unwrap_or_else(|error| panic!("{error}"));
        let url = server.url().replace("://", &format!("://{user}"));
        let client = connect(&url).await;
        async_nats::jetstream::new(client.clone())
            .create_object_store(async_nats::jetstream::object_store::Config {
                bucket: BUCKET.to_owned(),
                ..Default::default()
            })
            .await
            .unwrap();
        Self {
            server,
            url,
            client,
            issuer: KeyPair::new_account(),
            xkey: XKey::new(),
            held: Arc::new(Semaphore::new(0)),
        }
    }

    /// Starts a node with a connection of its own.
    pub(crate) async fn node(&self, config: NodeConfig) -> Node {
        let client = connect(&self.url).await;
        self.node_on(config, client).await
    }

    pub(crate) async fn node_on(&self, config: NodeConfig, client: Client) -> Node {
        let engine = Arc::new(OneWordEngine {
            held: self.held.clone(),
        });
        Node::start(config, client, engine).await.unwrap()
    }

    pub(crate) fn control(&self) -> ControlClient {
        ControlClient::new(self.client.clone(), "default", PATIENCE)
    }

    pub(crate) async fn upload(&self, key: &str, content: &str) -> Location {
        let store = async_nats::jetstream::new(self.client.clone())
            .get_object_store(BUCKET)
            .await
            .unwrap();
        store.put(key, &mut content.as_bytes()).await.unwrap();
        Location::new(BUCKET, key).unwrap()
    }

    /// A request to run an artefact; each call signs anew.
    pub(crate) async fn request(&self, node: &Node, name: &str, source: &str, subjects: &[&str]) -> DeployRequest {
        let location = self.upload(name, source).await;
        let id = uuid::Uuid::new_v4().to_string();
        let hash = hex_sha256(source.as_bytes());
        DeployRequest {
            argv: Vec::new(),
            description: "a test".to_owned(),
            hash: None,
            location,
            essential: false,
            environment: environment::seal(&BTreeMap::new(), &self.xkey, node.public_xkey()).unwrap(),
            workload_jwt: Claims::for_deploy(&id, name, &hash).sign(&self.issuer).unwrap(),
            id: Some(id),
            jsdomain: None,
            limits: LimitSet::default(),
            sender_public_key: self.xkey.public_key(),
            target_node: Some(node.id().to_owned()),
            trigger_subjects: subjects.iter().map(|&subject| subject.to_owned()).collect(),
            host_services_config: None,
            trigger_connection: None,
            workload_name: Some(name.to_owned()),
            workload_type: "v8".to_owned(),
        }
    }

    /// Uploads and runs a function.
    pub(crate) async fn deploy(&self, node: &Node, name: &str, source: &str, subjects: &[&str]) -> DeployResponse {
        let request = self.request(node, name, source, subjects).await;
        self.control().deploy(node.id(), &request).await.unwrap()
    }

    /// A stop request signed a second after the present, because that of the start must differ.
    pub(crate) fn stop_request(&self, node: &Node, workload: &str) -> StopRequest {
        let later = nex_node::claims::now() + 1;
        StopRequest {
            node_id: Some(node.id().to_owned()),
            workload_id: workload.to_owned(),
            workload_jwt: Claims::for_stop(workload).sign_at(&self.issuer, later).unwrap(),
        }
    }

    pub(crate) async fn stop(&self, node: &Node, workload: &str) -> Result<StopResponse, ControlError> {
        self.control().stop(node.id(), &self.stop_request(node, workload)).await
    }

    pub(crate) async fn call(&self, subject: &str, payload: &str) -> Message {
        let request = async_nats::Request::new()
            .payload(payload.to_owned().into())
            .timeout(Some(PATIENCE));
        self.client.send_request(subject.to_owned(), request).await.unwrap()
    }

    /// Sends raw bytes to a control subject and returns the envelope.
    pub(crate) async fn raw(&self, subject: &str, payload: impl Into<Bytes>) -> Value {
        let request = async_nats::Request::new()
            .payload(payload.into())
            .timeout(Some(PATIENCE));
        let reply = self.client.send_request(subject.to_owned(), request).await.unwrap();
        serde_json::from_slice(&reply.payload).unwrap()
    }

    /// Listens; when this returns, the server knows of it.
    pub(crate) async fn listen(&self, subject: &str) -> Subscriber {
        let subscriber = self.client.subscribe(subject.to_owned()).await.unwrap();
        self.settle().await;
        subscriber
    }

    /// The server has seen all that this connection has sent.
    pub(crate) async fn settle(&self) {
        let inbox = self.client.new_inbox();
        let mut echo = self.client.subscribe(inbox.clone()).await.unwrap();
        self.client.publish(inbox, Bytes::new()).await.unwrap();
        next(&mut echo).await;
    }
}

/// A connection with the user that the URL names.
pub(crate) async fn connect(url: &str) -> Client {
    Connection::to(url, "test").unwrap().connect().await.unwrap()
}

/// The next message.
pub(crate) async fn next(subscriber: &mut Subscriber) -> Message {
    timeout(PATIENCE, subscriber.next())
        .await
        .expect("a message in time")
        .expect("a connection")
}

/// The next message, as JSON.
pub(crate) async fn next_json(subscriber: &mut Subscriber) -> (String, Value) {
    let message = next(subscriber).await;
    (
        message.subject.to_string(),
        serde_json::from_slice(&message.payload).unwrap(),
    )
}

/// The error text of a refusal.
pub(crate) fn refusal<T: std::fmt::Debug>(result: Result<T, ControlError>) -> String {
    match result {
        Err(ControlError::Refused(text)) => text,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

pub(crate) fn header<'a>(message: &'a Message, name: &str) -> Option<&'a str> {
    let headers: &HeaderMap = message.headers.as_ref()?;
    headers.get(name).map(|value| value.as_str())
}
