//! Each operation: check its arguments against the policy, call the backend, shape the result.

use std::num::NonZeroU32;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use nex_runtime::host_services::{
    Headers, HostError, HostRequest, HostResponse, HostResult, HttpMethod, MessageInfo, Operation,
};
use url::Url;

use super::{Shared, duration};
use crate::error::{internal, invalid, limit, not_found};
use crate::http;
use crate::messaging::{Gather, Message};
use crate::names::{check_key, check_message_headers, check_message_size, check_object_name};
use crate::policy::check_url;

type Answer = Result<HostResponse, HostError>;

impl Shared {
    pub(super) async fn run(&self, HostRequest { operation, payload }: HostRequest) -> Answer {
        use Operation as Op;
        match operation {
            Op::KvGet { bucket, key } => self.kv_get(bucket.as_deref(), &key).await,
            Op::KvSet { bucket, key } => self.kv_set(bucket.as_deref(), &key, payload).await,
            Op::KvDelete { bucket, key } => self.kv_delete(bucket.as_deref(), &key).await,
            Op::KvKeys { bucket } => self.kv_keys(bucket.as_deref()).await,
            Op::ObjectGet { bucket, name } => self.object_get(bucket.as_deref(), &name).await,
            Op::ObjectPut { bucket, name } => self.object_put(bucket.as_deref(), &name, payload).await,
            Op::ObjectDelete { bucket, name } => self.object_delete(bucket.as_deref(), &name).await,
            Op::ObjectList { bucket } => self.object_list(bucket.as_deref()).await,
            Op::Publish { subject, headers } => {
                let message = self.message(subject, headers, payload)?;
                self.backends.messaging.publish(message).await?;
                Ok(HostResult::Done.into())
            }
            Op::Request {
                subject,
                headers,
                timeout_ms,
            } => {
                let message = self.message(subject, headers, payload)?;
                self.request(message, timeout_ms).await
            }
            Op::RequestMany {
                subject,
                headers,
                timeout_ms,
                max_replies,
            } => {
                let message = self.message(subject, headers, payload)?;
                self.request_many(message, timeout_ms, max_replies).await
            }
            Op::Http {
                method,
                url,
                headers,
                timeout_ms,
            } => self.http(method, &url, headers, payload, timeout_ms).await,
        }
    }

    async fn kv_get(&self, bucket: Option<&str>, key: &str) -> Answer {
        let bucket = self.policy.kv_bucket(bucket)?;
        check_key(key)?;
        let found = self.backends.kv.get(&bucket, key).await?;
        let missing = || not_found(format!("no key {key:?} in bucket {:?}", bucket.name));
        Ok(value(found.ok_or_else(missing)?))
    }

    async fn kv_set(&self, bucket: Option<&str>, key: &str, value: Bytes) -> Answer {
        let bucket = self.policy.kv_bucket(bucket)?;
        check_key(key)?;
        let max_payload = self.backends.messaging.max_payload();
        if value.len() > max_payload {
            return Err(limit(format!(
                "value of {} bytes is larger than the server's max_payload of {max_payload} bytes",
                value.len()
            )));
        }
        let revision = self.backends.kv.set(&bucket, key, value).await?;
        Ok(HostResult::Revision(revision).into())
    }

    async fn kv_delete(&self, bucket: Option<&str>, key: &str) -> Answer {
        let bucket = self.policy.kv_bucket(bucket)?;
        check_key(key)?;
        self.backends.kv.delete(&bucket, key).await?;
        Ok(HostResult::Done.into())
    }

    async fn kv_keys(&self, bucket: Option<&str>) -> Answer {
        let bucket = self.policy.kv_bucket(bucket)?;
        let mut keys = self.backends.kv.keys(&bucket).await?;
        keys.sort_unstable();
        Ok(HostResult::Keys(keys).into())
    }

    async fn object_get(&self, bucket: Option<&str>, name: &str) -> Answer {
        let bucket = self.policy.object_bucket(bucket)?;
        check_object_name(name)?;
        let max = self.policy.config().objectstore.config.max_object_bytes.get();
        let found = self.backends.objects.get(&bucket, name, max).await?;
        Ok(value(found.ok_or_else(|| no_object(name, &bucket.name))?))
    }

    async fn object_put(&self, bucket: Option<&str>, name: &str, content: Bytes) -> Answer {
        let bucket = self.policy.object_bucket(bucket)?;
        check_object_name(name)?;
        let max = self.policy.config().objectstore.config.max_object_bytes.get();
        if content.len() > max {
            return Err(limit(format!(
                "object {name:?} has {} bytes; a function may write {max}",
                content.len()
            )));
        }
        let info = self.backends.objects.put(&bucket, name, content).await?;
        Ok(HostResult::Object(info).into())
    }

    async fn object_delete(&self, bucket: Option<&str>, name: &str) -> Answer {
        let bucket = self.policy.object_bucket(bucket)?;
        check_object_name(name)?;
        if self.backends.objects.delete(&bucket, name).await? {
            Ok(HostResult::Done.into())
        } else {
            Err(no_object(name, &bucket.name))
        }
    }

    async fn object_list(&self, bucket: Option<&str>) -> Answer {
        let bucket = self.policy.object_bucket(bucket)?;
        let mut objects = self.backends.objects.list(&bucket).await?;
        objects.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(HostResult::Objects(objects).into())
    }

    /// A message that may be sent.
    fn message(&self, subject: String, headers: Headers, payload: Bytes) -> Result<Message, HostError> {
        self.policy.check_publish(&subject)?;
        check_message_headers(&headers)?;
        let max_payload = self.backends.messaging.max_payload();
        check_message_size(&headers, payload.len(), max_payload)?;
        Ok(Message {
            subject,
            reply: None,
            headers,
            payload,
        })
    }

    async fn request(&self, message: Message, timeout_ms: Option<u32>) -> Answer {
        let default = self.policy.config().messaging.config.request_timeout_ms;
        let timeout = timeout(timeout_ms, default)?;
        let reply = self.backends.messaging.request(message, timeout).await?;
        messages(vec![reply])
    }

    async fn request_many(&self, message: Message, timeout_ms: Option<u32>, max_replies: Option<u32>) -> Answer {
        let config = &self.policy.config().messaging.config;
        if max_replies == Some(0) {
            return Err(invalid("the maximum number of replies is 0"));
        }
        let gather = Gather {
            timeout: timeout(timeout_ms, config.request_many_timeout_ms)?,
            max_replies,
            max_bytes: config.max_gather_bytes.get(),
        };
        messages(self.backends.messaging.request_many(message, gather).await?)
    }

    async fn http(
        &self,
        method: HttpMethod,
        url: &str,
        headers: Headers,
        body: Bytes,
        timeout_ms: Option<u32>,
    ) -> Answer {
        let config = &self.policy.config().http.config;
        if url.is_empty() {
            return Err(invalid("url is required"));
        }
        let url = Url::parse(url).map_err(|error| invalid(format!("URL {url:?}: {error}")))?;
        check_url(&url)?;
        let limits = http::Limits {
            timeout: timeout(timeout_ms, config.timeout_ms)?,
            max_response_bytes: config.max_response_bytes.get(),
        };
        let request = http::Request {
            method,
            url,
            headers,
            body,
        };
        let response = self.backends.http.send(request, limits).await?;
        let http::Response { status, headers, body } = response;
        Ok(HostResponse {
            result: HostResult::Http { status, headers },
            payload: body,
        })
    }
}

fn value(payload: Bytes) -> HostResponse {
    HostResponse {
        result: HostResult::Value,
        payload,
    }
}

fn no_object(name: &str, bucket: &str) -> HostError {
    not_found(format!("no object {name:?} in bucket {bucket:?}"))
}

/// The time a call may take: the function's choice, or the default.
fn timeout(requested: Option<u32>, default: NonZeroU32) -> Result<Duration, HostError> {
    match requested.map(NonZeroU32::new) {
        None => Ok(duration(default)),
        Some(Some(requested)) => Ok(duration(requested)),
        Some(None) => Err(invalid("the timeout is 0 ms")),
    }
}

/// Messages with their payloads one after another.
fn messages(mut messages: Vec<Message>) -> Answer {
    let payload = match messages.as_mut_slice() {
        [one] => one.payload.clone(),
        many => {
            let mut all = BytesMut::with_capacity(many.iter().map(|m| m.payload.len()).sum());
            many.iter().for_each(|message| all.extend_from_slice(&message.payload));
            all.freeze()
        }
    };
    let infos: Result<Vec<MessageInfo>, HostError> = messages
        .into_iter()
        .map(
            |Message {
                 subject,
                 headers,
                 payload,
                 ..
             }| {
                let len = u32::try_from(payload.len()).map_err(|_| internal("a reply of more than 4 GiB"))?;
                Ok(MessageInfo { subject, headers, len })
            },
        )
        .collect();
    Ok(HostResponse {
        result: HostResult::Messages(infos?),
        payload,
    })
}
