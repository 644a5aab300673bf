//! HTTP over real sockets, against a server that this test writes byte by byte.

use std::io::{Read as _, Write as _};
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nex_host_services::http::{MAX_REDIRECTS, ReqwestHttp, Response, ScriptedHttp};
use nex_host_services::memory::Memory;
use nex_host_services::{Backends, Config, Policy, Services};
use nex_runtime::host_services::{
    Headers, HostError, HostErrorCode as Code, HostRequest, HostResult, HostServices as _, HttpMethod, Operation,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::world::*;

/// A request as the server saw it.
#[derive(Debug, Clone)]
struct Seen {
    method: String,
    target: String,
    headers: Headers,
    body: Vec<u8>,
}

impl Seen {
    fn header(&self, name: &str) -> Vec<&str> {
        let named = self.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str()).collect()
    }
}

/// Serves connections with raw responses; every request goes into the channel.
async fn serve(respond: impl Fn(&Seen) -> Vec<u8> + Send + Sync + 'static) -> (String, mpsc::UnboundedReceiver<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (sender, receiver) = mpsc::unbounded_channel();
    let respond = Arc::new(respond);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (sender, respond) = (sender.clone(), respond.clone());
            tokio::spawn(async move {
                if let Some(seen) = read_request(&mut stream).await {
                    let response = respond(&seen);
                    _ = sender.send(seen);
                    _ = stream.write_all(&response).await;
                }
            });
        }
    });
    (url, receiver)
}

async fn read_request(stream: &mut TcpStream) -> Option<Seen> {
    let mut read = Vec::new();
    let head_end = loop {
        if let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(&mut read).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(read[..head_end].to_vec()).ok()?;
    let mut lines = head.split("\r\n");
    let mut request_line = lines.next()?.split(' ');
    let headers: Headers = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let mut seen = Seen {
        method: request_line.next()?.to_owned(),
        target: request_line.next()?.to_owned(),
        headers,
        body: read[head_end + 4..].to_vec(),
    };
    let length = seen
        .header("content-length")
        .first()
        .map_or(0, |length| length.parse().unwrap());
    while seen.body.len() < length {
        if stream.read_buf(&mut seen.body).await.ok()? == 0 {
            return None;
        }
    }
    Some(seen)
}

/// A response with `content-length` that ends the connection.
fn response(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut raw = format!(
        "HTTP/1.1 {status} Whatever\r\nconnection: close\r\ncontent-length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        raw += &format!("{name}: {value}\r\n");
    }
    [raw.as_bytes(), b"\r\n", body].concat()
}

struct Http(Services);

impl Http {
    fn new() -> Self {
        Self::configured(Config::default())
    }

    fn configured(config: Config) -> Self {
        let backends = Backends {
            http: Arc::new(ReqwestHttp::new()),
            ..Memory::new().backends()
        };
        let policy = Policy::new("ns", "wl", config);
        Self(Services::new(policy, backends, Some(Handle::current())))
    }

    async fn send(
        &self,
        method: HttpMethod,
        url: &str,
        headers: Headers,
        body: impl Into<Bytes>,
    ) -> Result<Response, HostError> {
        let operation = Operation::Http {
            method,
            url: url.to_owned(),
            headers,
            timeout_ms: None,
        };
        let request = HostRequest {
            operation,
            payload: body.into(),
        };
        let call = tokio::time::timeout(PATIENCE, self.0.call(request));
        let answer = call.await.expect("an answer")?;
        let HostResult::Http { status, headers } = answer.result else {
            panic!("{:?}", answer.result)
        };
        Ok(Response {
            status,
            headers,
            body: answer.payload,
        })
    }

    async fn get(&self, url: &str) -> Result<Response, HostError> {
        self.send(HttpMethod::Get, url, vec![], "").await
    }
}

#[tokio::test]
async fn every_method() {
    let (url, mut seen) = serve(|seen| match seen.method.as_str() {
        "GET" => response(200, &[], b"got"),
        "POST" => response(201, &[], b"made"),
        // A HEAD response announces the length of a body that does not come.
        "HEAD" => b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 99999999\r\n\r\n".to_vec(),
        _ => b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n".to_vec(),
    })
    .await;
    let http = Http::new();
    for (method, status, body) in [
        (HttpMethod::Get, 200, "got"),
        (HttpMethod::Post, 201, "made"),
        (HttpMethod::Put, 204, ""),
        (HttpMethod::Patch, 204, ""),
        (HttpMethod::Delete, 204, ""),
        (HttpMethod::Head, 200, ""),
    ] {
        let takes_body = !matches!(method, HttpMethod::Get | HttpMethod::Head);
        let sent = if takes_body { all_bytes() } else { vec![] };
        let answer = http.send(method, &url, vec![], sent.clone()).await.unwrap();
        assert_eq!((answer.status, answer.body.as_ref()), (status, body.as_bytes()));
        let request = seen.recv().await.unwrap();
        assert_eq!(request.method, method.as_str());
        assert_eq!(request.target, "/");
        assert_eq!(request.body, sent);
        assert_eq!(request.header("content-length").is_empty(), !takes_body);
    }
    // A body may be empty, and GET may have one.
    http.send(HttpMethod::Post, &url, vec![], "").await.unwrap();
    assert_eq!(seen.recv().await.unwrap().header("content-length"), ["0"]);
    http.send(HttpMethod::Get, &url, vec![], "query").await.unwrap();
    assert_eq!(seen.recv().await.unwrap().body, b"query");
}

#[tokio::test]
async fn urls_go_out_as_they_are() {
    let (url, mut seen) = serve(|_| response(200, &[], b"")).await;
    let http = Http::new();
    for target in [
        "/a//b?x=1&y=%20z+w&x=2&empty=&flag",
        "/?",
        "/p%2Fq/?url=http://a/?b=c",
        "/%E4%BD%A0",
    ] {
        http.get(&format!("{url}{target}#fragment")).await.unwrap();
        assert_eq!(seen.recv().await.unwrap().target, target);
    }
}

#[tokio::test]
async fn headers_and_binary_bodies_both_ways() {
    let (url, mut seen) = serve(|_| {
        let headers = [
            ("set-cookie", "a=1"),
            ("X-Text", "grüße"),
            ("set-cookie", "b=2"),
            ("content-encoding", "gzip"),
        ];
        response(404, &headers, &all_bytes())
    })
    .await;
    let http = Http::new();
    let sent = headers(&[("X-One", "1"), ("Accept", "text/x"), ("X-Many", "a"), ("X-Many", "b")]);
    let answer = http.send(HttpMethod::Delete, &url, sent, all_bytes()).await.unwrap();
    assert_eq!(answer.status, 404, "which is no error");
    // Not even a body that claims to be compressed is touched.
    assert_eq!(answer.body, all_bytes());
    for expected in [
        ("set-cookie", "a=1"),
        ("set-cookie", "b=2"),
        ("x-text", "grüße"),
        ("content-encoding", "gzip"),
    ] {
        let expected = (expected.0.to_owned(), expected.1.to_owned());
        assert!(
            answer.headers.contains(&expected),
            "{expected:?} in {:?}",
            answer.headers
        );
    }
    let request = seen.recv().await.unwrap();
    assert_eq!(request.body, all_bytes());
    assert_eq!(request.header("x-one"), ["1"]);
    assert_eq!(request.header("accept"), ["text/x"]);
    assert_eq!(request.header("x-many"), ["a", "b"]);
    assert!(request.header("user-agent")[0].starts_with("nex/"));
    assert!(request.header("accept-encoding").is_empty());
    assert!(request.header("content-type").is_empty());
}

#[tokio::test]
async fn redirects() {
    let (url, mut seen) = serve(|seen| {
        let next = |status, to: &str| response(status, &[("location", to)], b"");
        match seen.target.as_str() {
            "/303" => next(303, "/end?q=1"),
            "/307" => next(307, "/end?q=2"),
            "/ftp" => next(302, "ftp://127.0.0.1/"),
            "/loop" => next(302, "/loop"),
            countdown if countdown.starts_with("/count/") => match &countdown[7..] {
                "0" => response(200, &[], b"end"),
                n => next(302, &format!("/count/{}", n.parse::<usize>().unwrap() - 1)),
            },
            _ => response(200, &[], b"end"),
        }
    })
    .await;
    let http = Http::new();
    for (start, method, target, body) in [("/303", "GET", "/end?q=1", ""), ("/307", "POST", "/end?q=2", "body")] {
        let answer = http
            .send(HttpMethod::Post, &format!("{url}{start}"), vec![], "body")
            .await
            .unwrap();
        assert_eq!((answer.status, answer.body.as_ref()), (200, b"end".as_ref()));
        assert_eq!(seen.recv().await.unwrap().target, start);
        let last = seen.recv().await.unwrap();
        assert_eq!(
            (last.method.as_str(), last.target.as_str(), last.body.as_slice()),
            (method, target, body.as_bytes())
        );
    }
    http.get(&format!("{url}/count/{MAX_REDIRECTS}")).await.unwrap();
    assert_code(
        http.get(&format!("{url}/count/{}", MAX_REDIRECTS + 1)).await,
        Code::LimitExceeded,
    );
    assert_code(http.get(&format!("{url}/loop")).await, Code::LimitExceeded);
    let error = http.get(&format!("{url}/ftp")).await.unwrap_err();
    assert_eq!(error.code, Code::PermissionDenied, "{error}");
    assert!(error.message.contains("ftp"), "{error}");
}

#[tokio::test]
async fn response_bodies_have_a_limit() {
    let (url, _seen) = serve(|seen| match seen.target.as_str() {
        "/announced" => b"HTTP/1.1 200 OK\r\ncontent-length: 1001\r\n\r\n".to_vec(),
        "/chunked" => {
            let chunk = [b"1f4\r\n".as_slice(), &[b'x'; 500], b"\r\n"].concat();
            let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
            [head.as_slice(), &chunk, &chunk, &chunk].concat()
        }
        _ => response(200, &[], &[b'x'; 1_000]),
    })
    .await;
    let mut config = Config::default();
    config.http.config.max_response_bytes = NonZeroUsize::new(1_000).unwrap();
    let http = Http::configured(config);
    assert_eq!(http.get(&format!("{url}/exact")).await.unwrap().body.len(), 1_000);
    // Neither waits for the rest of the body, which never comes.
    assert_code(http.get(&format!("{url}/announced")).await, Code::LimitExceeded);
    assert_code(http.get(&format!("{url}/chunked")).await, Code::LimitExceeded);
}

#[tokio::test]
async fn timeouts() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let http = Http::new();
    let ask = |timeout_ms| {
        let (method, url, headers) = (HttpMethod::Get, url.clone(), vec![]);
        let operation = Operation::Http {
            method,
            url,
            headers,
            timeout_ms: Some(timeout_ms),
        };
        http.0.call(HostRequest {
            operation,
            payload: Bytes::new(),
        })
    };
    let started = Instant::now();
    assert_code(ask(60).await, Code::Timeout);
    assert_code(ask(0).await, Code::InvalidArgument);
    assert!(started.elapsed() < Duration::from_secs(5));

    let mut config = Config::default();
    config.http.config.timeout_ms = NonZeroU32::new(60).unwrap();
    assert_code(Http::configured(config).get(&url).await, Code::Timeout);
}

#[tokio::test]
async fn a_dropped_call_closes_its_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let http = Http::new();
    let operation = Operation::Http {
        method: HttpMethod::Get,
        url,
        headers: vec![],
        timeout_ms: Some(600_000),
    };
    let call = http.0.call(HostRequest {
        operation,
        payload: Bytes::new(),
    });
    let (mut stream, _) = listener.accept().await.unwrap();
    read_request(&mut stream).await.unwrap();
    drop(call);
    let rest = tokio::time::timeout(PATIENCE, stream.read(&mut [0; 1]))
        .await
        .expect("the end of the connection");
    assert_eq!(rest.unwrap_or(0), 0);
}

#[tokio::test]
async fn servers_that_cannot_be_reached() {
    let http = Http::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = http.get(&format!("http://{address}/")).await.unwrap_err();
    assert_eq!(error.code, Code::Unavailable);
    assert!(error.message.to_lowercase().contains("connection refused"), "{error}");
    assert_code(http.get("http://does-not-exist.invalid/").await, Code::Unavailable);

    // Breaks off in the middle of the body.
    let (url, _seen) = serve(|_| b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nfive!".to_vec()).await;
    assert_code(http.get(&url).await, Code::Unavailable);
    let (url, _seen) = serve(|_| b"this is not HTTP\r\n\r\n".to_vec()).await;
    assert_code(http.get(&url).await, Code::Unavailable);
}

#[tokio::test]
async fn malformed_requests() {
    let http = Http::new();
    for url in [
        "",
        "example.org",
        "/path",
        "ftp://example.org/",
        "file:///etc/passwd",
        "http://",
        "http://[::1",
        "data:,x",
    ] {
        assert_code(http.get(url).await, Code::InvalidArgument);
    }
    for (name, value) in [
        ("", "v"),
        ("a b", "v"),
        ("x", "a\r\nb: c"),
        ("Content-Length", "5"),
        ("transfer-encoding", "chunked"),
        ("Connection", "keep-alive"),
    ] {
        let sent = http
            .send(HttpMethod::Post, "http://127.0.0.1:9/", headers(&[(name, value)]), "")
            .await;
        assert_code(sent, Code::InvalidArgument);
    }
}

/// A self-signed certificate for 127.0.0.1; its private key is 32 times the byte 7.
const CERTIFICATE: &str = "\
-----BEGIN CERTIFICATE-----
MIIBTDCB/6ADAgECAhRi9Y3rtisizYaIqYgYavmG53zfEjAFBgMrZXAwFDESMBAG
A1UEAwwJMTI3LjAuMC4xMCAXDTI2MTEyMjIxMjM0OVoYDzIxMjYxMDI5MjEyMzQ5
WjAUMRIwEAYDVQQDDAkxMjcuMC4wLjEwKjAFBgMrZXADIQDqSmxj4pxSCr71UHsT
LsX5lUd2rr6+e5JCHuppFEbSLKNhMF8wHQYDVR0OBBYEFExezkAjoDQe4qz/zE0X
FUqFTwLlMB8GA1UdIwQYMBaAFExezkAjoDQe4qz/zE0XFUqFTwLlMA8GA1UdEQQI
MAaHBH8AAAEwDAYDVR0TAQH/BAIwADAFBgMrZXADQQDGcDwlhmXEMtTIjIDa1iws
Ktj/Nyz3K49a4qvJUJB8eKCKHbjaaPs9slPcxE4EC1XSG+yG0YU3Vu/mQJ7mqSML
-----END CERTIFICATE-----
";

#[tokio::test]
async fn certificates_are_verified_even_on_private_addresses() {
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

    let certificate = CertificateDer::from_pem_slice(CERTIFICATE.as_bytes()).unwrap();
    // PKCS#8 of an Ed25519 key is a fixed beginning and the key.
    let mut key = data_encoding::HEXLOWER
        .decode(b"302e020100300506032b657004220420")
        .unwrap();
    key.extend([7; 32]);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], PrivatePkcs8KeyDer::from(key).into())
        .unwrap();

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}/", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let (socket, _) = listener.accept().unwrap();
        let connection = rustls::ServerConnection::new(Arc::new(tls)).unwrap();
        let mut stream = rustls::StreamOwned::new(connection, socket);
        let read = stream.read(&mut [0; 1_024]);
        if read.is_ok() {
            _ = stream.write_all(&response(200, &[], b"trusted"));
        }
        read.map(drop).map_err(|error| error.to_string())
    });
    let error = Http::new().get(&url).await.unwrap_err();
    assert_eq!(error.code, Code::Unavailable, "{error}");
    assert!(error.message.contains("certificate"), "{error}");
    let server = tokio::task::spawn_blocking(|| server.join()).await.unwrap().unwrap();
    assert!(
        server.unwrap_err().contains("alert"),
        "the server was refused for its certificate"
    );
}

#[tokio::test]
async fn scripted_routes() {
    let world = Memory::new();
    let http: &ScriptedHttp = &world.http;
    http.route(HttpMethod::Get, "https://api.test/*", |request| {
        Ok(Response {
            body: request.url.query().unwrap_or_default().to_owned().into(),
            ..Response::status(200)
        })
    });
    http.route(HttpMethod::Get, "https://api.test/down", |_| {
        Err(HostError::new(Code::Timeout, "too slow"))
    });
    let services = world.services(Policy::new("ns", "wl", Config::default()));
    let caller = Http(services);
    assert_eq!(caller.get("https://api.test/a?q=1").await.unwrap().body, "q=1");
    assert_code(caller.get("https://api.test/down").await, Code::Timeout);
    assert_code(caller.get("https://elsewhere.test/").await, Code::Unavailable);
    assert_code(caller.get("ftp://api.test/").await, Code::InvalidArgument);
    caller
        .send(HttpMethod::Post, "https://api.test/a", headers(&[("X-A", "1")]), "body")
        .await
        .unwrap_err();
    let requests = http.requests();
    assert_eq!(requests.len(), 4);
    assert_eq!(
        (requests[3].headers[0].1.as_str(), requests[3].body.as_ref()),
        ("1", b"body".as_ref())
    );
}
