//! A place where services run: in memory, or on a NATS server of the test's own.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use nex_host_services::memory::Memory;
use nex_host_services::messaging::Message;
use nex_host_services::nats_server::NatsServer;
use nex_host_services::{Config, Policy, Services};
use nex_runtime::host_services::{
    Headers, HostError, HostErrorCode, HostRequest, HostResponse, HostResult, HostServices as _, ObjectInfo, Operation,
};
use nex_runtime::invocation::Reply;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

/// Longer than anything takes; only a failing test waits for it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) enum World {
    Memory(Memory),
    Nats(NatsServer),
}

impl World {
    pub(crate) fn memory() -> Self {
        Self::Memory(Memory::new())
    }

    pub(crate) fn nats() -> Self {
        Self::Nats(NatsServer::start().unwrap())
    }

    /// A connection as another program would have it.
    pub(crate) async fn client(&self) -> async_nats::Client {
        let Self::Nats(server) = self else {
            panic!("no server in memory")
        };
        async_nats::connect(server.url()).await.unwrap()
    }

    /// Services of workload `wl` in namespace `ns`.
    pub(crate) async fn services(&self) -> Caller {
        self.services_of("ns", "wl", Config::default()).await
    }

    pub(crate) async fn configured(&self, config: Config) -> Caller {
        self.services_of("ns", "wl", config).await
    }

    /// Each call makes the services of another node: a connection and handles of its own.
    pub(crate) async fn services_of(&self, ns: &str, workload: &str, config: Config) -> Caller {
        let policy = Policy::new(ns, workload, config);
        Caller(match self {
            Self::Memory(memory) => memory.services(policy),
            Self::Nats(_) => {
                let client = self.client().await;
                let jetstream = async_nats::jetstream::new(client.clone());
                Services::nats(client, jetstream, policy, Handle::current())
            }
        })
    }

    /// Answers a subject from outside, from now on.
    pub(crate) async fn respond(
        &self,
        subject: &'static str,
        respond: impl Fn(&Message) -> Option<Reply> + Send + Sync + 'static,
    ) {
        match self {
            Self::Memory(memory) => memory.messaging.respond(subject, respond).unwrap(),
            Self::Nats(_) => {
                let client = self.client().await;
                let mut messages = self.listen(&client, subject).await;
                tokio::spawn(async move {
                    while let Some(message) = messages.recv().await {
                        let (Some(reply), Some(inbox)) = (respond(&message), message.reply) else {
                            continue;
                        };
                        let mut headers = async_nats::HeaderMap::new();
                        for (name, value) in reply.headers {
                            headers.append(name, value);
                        }
                        let sent = client.publish_with_headers(inbox, headers, reply.body).await;
                        sent.unwrap();
                    }
                });
            }
        }
    }

    /// Receives what is published to a subject from now on.
    pub(crate) async fn subscribe(&self, subject: &'static str) -> mpsc::UnboundedReceiver<Message> {
        match self {
            Self::Memory(memory) => {
                let mut messages = memory.messaging.subscribe(subject).unwrap();
                let (sender, receiver) = mpsc::unbounded_channel();
                tokio::spawn(async move {
                    while let Some(message) = messages.next().await {
                        _ = sender.send(message);
                    }
                });
                receiver
            }
            Self::Nats(_) => self.listen(&self.client().await, subject).await,
        }
    }

    async fn listen(&self, client: &async_nats::Client, subject: &'static str) -> mpsc::UnboundedReceiver<Message> {
        let mut messages = client.subscribe(subject).await.unwrap();
        // The server handles a connection's commands in order: when our own message is back, it has the subscription.
        let inbox = client.new_inbox();
        let mut echo = client.subscribe(inbox.clone()).await.unwrap();
        client.publish(inbox, Bytes::new()).await.unwrap();
        echo.next().await.unwrap();

        let (sender, receiver) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(message) = messages.next().await {
                let headers = message.headers.iter().flat_map(|headers| headers.iter());
                let mut headers: Headers = headers
                    .flat_map(|(name, values)| values.iter().map(|value| (name.to_string(), value.to_string())))
                    .collect();
                headers.sort_by(|(a, _), (b, _)| a.cmp(b));
                _ = sender.send(Message {
                    subject: message.subject.to_string(),
                    reply: message.reply.map(|reply| reply.to_string()),
                    headers,
                    payload: message.payload,
                });
            }
        });
        receiver
    }

    /// Deletes a key-value bucket and an object bucket behind the services' back.
    pub(crate) async fn delete_buckets(&self, kv: &str, objects: &str) {
        match self {
            Self::Memory(memory) => {
                memory.kv.delete_bucket(kv);
                memory.objects.delete_bucket(objects);
            }
            Self::Nats(_) => {
                let jetstream = async_nats::jetstream::new(self.client().await);
                for stream in [format!("KV_{kv}"), format!("OBJ_{objects}")] {
                    // A stream created right after one of its name was deleted may get the old one's messages back: the
                    // server (2.15.1) removes files in the background. So there are none to come back.
                    jetstream.get_stream(&stream).await.unwrap().purge().await.unwrap();
                    jetstream.delete_stream(&stream).await.unwrap();
                }
            }
        }
    }
}

/// Calls services as a function would, with one method for each operation.
#[derive(Clone)]
pub(crate) struct Caller(pub(crate) Services);

impl Caller {
    pub(crate) async fn call(
        &self,
        operation: Operation,
        payload: impl Into<Bytes>,
    ) -> Result<HostResponse, HostError> {
        let request = HostRequest {
            operation,
            payload: payload.into(),
        };
        tokio::time::timeout(PATIENCE, self.0.call(request))
            .await
            .expect("an answer")
    }

    pub(crate) async fn kv_get(&self, bucket: Option<&str>, key: &str) -> Result<Bytes, HostError> {
        let operation = Operation::KvGet {
            bucket: owned(bucket),
            key: key.to_owned(),
        };
        let response = self.call(operation, "").await?;
        assert_eq!(response.result, HostResult::Value);
        Ok(response.payload)
    }

    pub(crate) async fn kv_set(
        &self,
        bucket: Option<&str>,
        key: &str,
        value: impl Into<Bytes>,
    ) -> Result<u64, HostError> {
        let operation = Operation::KvSet {
            bucket: owned(bucket),
            key: key.to_owned(),
        };
        match self.call(operation, value).await?.result {
            HostResult::Revision(revision) => Ok(revision),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn kv_delete(&self, bucket: Option<&str>, key: &str) -> Result<(), HostError> {
        let operation = Operation::KvDelete {
            bucket: owned(bucket),
            key: key.to_owned(),
        };
        assert_eq!(self.call(operation, "").await?.result, HostResult::Done);
        Ok(())
    }

    pub(crate) async fn kv_keys(&self, bucket: Option<&str>) -> Result<Vec<String>, HostError> {
        match self.call(Operation::KvKeys { bucket: owned(bucket) }, "").await?.result {
            HostResult::Keys(keys) => Ok(keys),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn get(&self, bucket: Option<&str>, name: &str) -> Result<Bytes, HostError> {
        let operation = Operation::ObjectGet {
            bucket: owned(bucket),
            name: name.to_owned(),
        };
        let response = self.call(operation, "").await?;
        assert_eq!(response.result, HostResult::Value);
        Ok(response.payload)
    }

    pub(crate) async fn put(
        &self,
        bucket: Option<&str>,
        name: &str,
        content: impl Into<Bytes>,
    ) -> Result<ObjectInfo, HostError> {
        let operation = Operation::ObjectPut {
            bucket: owned(bucket),
            name: name.to_owned(),
        };
        match self.call(operation, content).await?.result {
            HostResult::Object(info) => Ok(info),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn delete(&self, bucket: Option<&str>, name: &str) -> Result<(), HostError> {
        let operation = Operation::ObjectDelete {
            bucket: owned(bucket),
            name: name.to_owned(),
        };
        assert_eq!(self.call(operation, "").await?.result, HostResult::Done);
        Ok(())
    }

    pub(crate) async fn list(&self, bucket: Option<&str>) -> Result<Vec<ObjectInfo>, HostError> {
        match self
            .call(Operation::ObjectList { bucket: owned(bucket) }, "")
            .await?
            .result
        {
            HostResult::Objects(objects) => Ok(objects),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn publish(
        &self,
        subject: &str,
        headers: Headers,
        payload: impl Into<Bytes>,
    ) -> Result<(), HostError> {
        let operation = Operation::Publish {
            subject: subject.to_owned(),
            headers,
        };
        assert_eq!(self.call(operation, payload).await?.result, HostResult::Done);
        Ok(())
    }

    pub(crate) async fn request(
        &self,
        subject: &str,
        headers: Headers,
        payload: impl Into<Bytes>,
        timeout_ms: Option<u32>,
    ) -> Result<(Headers, Bytes), HostError> {
        let operation = Operation::Request {
            subject: subject.to_owned(),
            headers,
            timeout_ms,
        };
        let mut replies = split(self.call(operation, payload).await?);
        assert_eq!(replies.len(), 1);
        Ok(replies.remove(0))
    }

    pub(crate) async fn request_many(
        &self,
        subject: &str,
        payload: impl Into<Bytes>,
        timeout_ms: Option<u32>,
        max_replies: Option<u32>,
    ) -> Result<Vec<(Headers, Bytes)>, HostError> {
        let operation = Operation::RequestMany {
            subject: subject.to_owned(),
            headers: Headers::new(),
            timeout_ms,
            max_replies,
        };
        Ok(split(self.call(operation, payload).await?))
    }
}

fn owned(bucket: Option<&str>) -> Option<String> {
    bucket.map(str::to_owned)
}

/// Headers and payload of each message, cut out of the one payload as the contract has it.
fn split(response: HostResponse) -> Vec<(Headers, Bytes)> {
    let HostResult::Messages(infos) = response.result else {
        panic!("{:?}", response.result)
    };
    let mut rest = response.payload;
    let messages = infos
        .into_iter()
        .map(|info| {
            assert!(info.subject.starts_with("_INBOX."), "{}", info.subject);
            (info.headers, rest.split_to(info.len as usize))
        })
        .collect();
    assert!(rest.is_empty());
    messages
}

/// All byte values, so that nothing that takes bytes for text gets through.
pub(crate) fn all_bytes() -> Vec<u8> {
    (0..=255).collect()
}

/// Content that is different everywhere.
pub(crate) fn content(len: usize) -> Vec<u8> {
    (0..len as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

pub(crate) fn headers(pairs: &[(&str, &str)]) -> Headers {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

#[track_caller]
pub(crate) fn assert_code<T: std::fmt::Debug>(result: Result<T, HostError>, code: HostErrorCode) {
    let error = result.expect_err("this must fail");
    assert_eq!(error.code, code, "{error}");
}

/// Runs futures at the same time, each in a task.
pub(crate) async fn together<T: Send + 'static>(
    futures: impl IntoIterator<Item = impl Future<Output = T> + Send + 'static>,
) -> Vec<T> {
    let tasks: Vec<_> = futures.into_iter().map(tokio::spawn).collect();
    let mut results = Vec::new();
    for task in tasks {
        results.push(task.await.unwrap());
    }
    results
}
