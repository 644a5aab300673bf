//! HTTP from a script, for tests: routes instead of servers, and a record of what was asked for.

use std::fmt;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::{BoxFuture, ready};
use nex_runtime::host_services::{HostError, HttpMethod};
use parking_lot::Mutex;

use super::{HttpClient, Limits, Request, Response};
use crate::error::{limit, unavailable};

/// An HTTP client that answers from a list of routes. Clones share it. Every request is answered at once.
///
/// ```
/// # use nex_host_services::http::{Response, ScriptedHttp};
/// # use nex_runtime::host_services::HttpMethod;
/// let http = ScriptedHttp::new();
/// http.route(HttpMethod::Get, "https://api.test/users/*", |request| {
///     Ok(Response { body: request.url.path().to_owned().into(), ..Response::status(200) })
/// });
/// ```
#[derive(Clone, Default)]
pub struct ScriptedHttp {
    script: Arc<Mutex<Script>>,
}

#[derive(Default)]
struct Script {
    routes: Vec<Route>,
    requests: Vec<Request>,
}

type Handler = dyn Fn(&Request) -> Result<Response, HostError> + Send + Sync;

struct Route {
    method: HttpMethod,
    url: String,
    handler: Arc<Handler>,
}

impl Route {
    fn matches(&self, request: &Request) -> bool {
        let url = request.url.as_str();
        self.method == request.method
            && match self.url.strip_suffix('*') {
                Some(prefix) => url.starts_with(prefix),
                None => url == self.url,
            }
    }
}

impl fmt::Debug for ScriptedHttp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let script = self.script.lock();
        f.debug_struct("ScriptedHttp")
            .field("routes", &script.routes.len())
            .field("requests", &script.requests)
            .finish()
    }
}

impl ScriptedHttp {
    /// A client without routes: everything is `UNAVAILABLE`.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Answers requests of this method to this URL, written the way [`url::Url`] writes it; a `*` at its end stands for
    /// any rest. Of several routes that match the last one counts.
    pub fn route(
        &self,
        method: HttpMethod,
        url: impl Into<String>,
        handler: impl Fn(&Request) -> Result<Response, HostError> + Send + Sync + 'static,
    ) {
        let route = Route {
            method,
            url: url.into(),
            handler: Arc::new(handler),
        };
        self.script.lock().routes.push(route);
    }

    /// All requests so far, answered or not.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.script.lock().requests.clone()
    }
}

impl HttpClient for ScriptedHttp {
    fn send(&self, request: Request, limits: Limits) -> BoxFuture<'_, Result<Response, HostError>> {
        // Not under the lock, because handlers may look at the requests.
        let handler = {
            let mut script = self.script.lock();
            script.requests.push(request.clone());
            let route = script.routes.iter().rev().find(|route| route.matches(&request));
            route.map(|route| route.handler.clone())
        };
        let answer = match handler {
            Some(handler) => handler(&request),
            None => Err(unavailable(format!(
                "no scripted route for {} {}",
                request.method.as_str(),
                request.url
            ))),
        };
        let max = limits.max_response_bytes;
        ready(match answer {
            Ok(response) if response.body.len() > max => Err(limit(format!("response body has more than {max} bytes"))),
            answer => answer,
        })
        .boxed()
    }
}
