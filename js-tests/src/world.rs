//! The host services of a case: empty buckets, the responders and the HTTP server that `README.md` describes.

use std::sync::Arc;

use bytes::Bytes;
use nex_host_services::http::{Request, Response};
use nex_host_services::memory::Memory;
use nex_host_services::messaging::Subscription;
use nex_host_services::{Config, InvalidPattern, Policy};
use nex_runtime::host_services::{HostServices, HttpMethod};
use nex_runtime::invocation::Reply;

/// One case's host services, as long as it is held.
pub(crate) struct World {
    pub(crate) services: Arc<dyn HostServices>,
    /// Listens to `svc.silent` and says nothing.
    _silent: Subscription,
}

impl World {
    pub(crate) fn new() -> Result<Self, InvalidPattern> {
        let memory = Memory::new();
        memory
            .messaging
            .respond("svc.echo", |message| Some(Reply::from(message.payload.clone())))?;
        for number in 1..=3 {
            memory.messaging.respond("svc.many", move |message| {
                let mut answer = format!("{number}: ").into_bytes();
                answer.extend_from_slice(&message.payload);
                Some(Reply::from(Bytes::from(answer)))
            })?;
        }
        for (method, status) in [
            (HttpMethod::Get, 200),
            (HttpMethod::Post, 201),
            (HttpMethod::Put, 204),
            (HttpMethod::Patch, 204),
            (HttpMethod::Delete, 204),
            (HttpMethod::Head, 200),
        ] {
            memory.http.route(method, "http://service.test/*", move |request| {
                Ok(answer(request, status))
            });
        }
        let silent = memory.messaging.subscribe("svc.silent")?;
        Ok(Self {
            services: Arc::new(memory.services(Policy::new("default", "case", Config::default()))),
            _silent: silent,
        })
    }
}

fn answer(request: &Request, status: u16) -> Response {
    let header = |name: &str| {
        let found = request
            .headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.clone()).unwrap_or_default()
    };
    let target = match request.url.query() {
        Some(query) => format!("{}?{query}", request.url.path()),
        None => request.url.path().to_owned(),
    };
    let body = match target.as_str() {
        "/echo" => request.body.clone(),
        "/header" => header("X-Tenant").into(),
        "/missing" => return Response::status(404),
        _ if status == 204 || request.method == HttpMethod::Head => Bytes::new(),
        _ => {
            let body = String::from_utf8_lossy(&request.body);
            format!("{} {target} {body}", request.method.as_str())
                .trim_end()
                .to_owned()
                .into()
        }
    };
    Response {
        headers: vec![("content-type".to_owned(), "text/plain".to_owned())],
        body,
        ..Response::status(status)
    }
}
