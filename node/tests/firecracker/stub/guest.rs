//! The guest of the stub: listens on its vsock, keeps to the control protocol, and runs an agent with a toy engine. While
//! the machine is paused, nothing passes in or out.

use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use nex_agent::guest::control::{self, Decoder, ToGuest, ToHost, VERSION};
use nex_agent::session;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, duplex, split};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, mpsc, watch};

use super::{Behaviour, Recorder};
use crate::toy::Toy;

/// Connections that come before the guest listens.
const EARLY: u32 = 2;

/// What `wait` says of an agent whose link has ended; a real one ends with 0, this one shows that it gets through.
const ENDED: i32 = 3 << 8;

/// What it says of one that was killed.
const KILLED: i32 = 9;

#[derive(Clone)]
pub struct Guest(Arc<Inner>);

struct Inner {
    behaviour: Behaviour,
    recorder: Recorder,
    exit: watch::Sender<Option<i32>>,
    running: watch::Receiver<bool>,
    restored: bool,
    connections: AtomicU32,
    controls: AtomicU32,
    offer: mpsc::Sender<UnixStream>,
    links: Mutex<mpsc::Receiver<UnixStream>>,
}

impl Guest {
    pub fn new(
        behaviour: Behaviour,
        recorder: Recorder,
        exit: watch::Sender<Option<i32>>,
        running: watch::Receiver<bool>,
        restored: bool,
    ) -> Self {
        let (offer, links) = mpsc::channel(4);
        Self(Arc::new(Inner {
            behaviour,
            recorder,
            exit,
            running,
            restored,
            connections: AtomicU32::new(0),
            controls: AtomicU32::new(0),
            offer,
            links: Mutex::new(links),
        }))
    }

    pub async fn listen(self, listener: UnixListener) -> Infallible {
        // The serial console.
        _ = writeln!(io::stdout(), "the guest's console");
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let guest = self.clone();
            tokio::spawn(async move { guest.connection(stream).await });
        }
    }

    async fn connection(&self, mut stream: UnixStream) -> io::Result<()> {
        let guest = &*self.0;
        // Firecracker takes the request in one piece.
        let mut request = [0; 32];
        let read = stream.read(&mut request).await?;
        guest.runs().await;
        match guest.behaviour {
            Behaviour::VsockCloses => return Ok(()),
            Behaviour::VsockLies => return stream.write_all(b"200 fine\n").await,
            Behaviour::VsockSilent => std::future::pending().await,
            _ => {}
        }
        if guest.connections.fetch_add(1, Ordering::Relaxed) < EARLY {
            return Ok(());
        }
        match &request[..read] {
            b"CONNECT 1\n" => {
                stream.write_all(b"OK 1073741824\n").await?;
                guest.control(stream).await
            }
            b"CONNECT 2\n" => {
                stream.write_all(b"OK 1073741825\n").await?;
                guest.offer.send(stream).await.map_err(io::Error::other)
            }
            // Nobody listens there.
            _ => Ok(()),
        }
    }
}

impl Inner {
    async fn runs(&self) {
        _ = self.running.clone().wait_for(|running| *running).await;
    }

    async fn control(&self, mut stream: UnixStream) -> io::Result<()> {
        let first = self.controls.fetch_add(1, Ordering::Relaxed) == 0;
        if first && !self.restored {
            let version = VERSION;
            send(&mut stream, &ToHost::Booted { version, uptime_ms: 1 }).await?;
        }
        let mut decoder = Decoder::default();
        let mut chunk = [0; 4096];
        let (ended, mut agent_ended) = mpsc::channel(1);
        // The host has been told that the agent is gone, and is to say goodbye.
        let mut parting = false;
        loop {
            let read = tokio::select! {
                read = stream.read(&mut chunk) => read?,
                Some(()) = agent_ended.recv() => {
                    send(&mut stream, &ToHost::AgentExited { wait_status: ENDED }).await?;
                    parting = true;
                    continue;
                }
            };
            if read == 0 {
                return Ok(());
            }
            decoder.push(&chunk[..read]);
            while let Some(message) = decoder.decode().unwrap() {
                self.runs().await;
                match message {
                    ToGuest::Start { args, env } => {
                        self.recorder
                            .write(&json!({"guest": "Start", "args": args, "env": env}));
                        match self.behaviour {
                            Behaviour::GuestFails => {
                                send(&mut stream, &ToHost::failed("no agent\nfound".to_owned())).await?;
                            }
                            Behaviour::GuestBabbles => stream.write_all(&[0xff; 100]).await?,
                            Behaviour::GuestIdles => {}
                            _ => send(&mut stream, &ToHost::Ready).await?,
                        }
                    }
                    ToGuest::Resume { unix_nanos, seed } => {
                        let seed = data_encoding::HEXLOWER.encode(seed.as_bytes());
                        self.recorder
                            .write(&json!({"guest": "Resume", "unix_nanos": unix_nanos, "seed": seed}));
                        if first && self.restored && self.behaviour == Behaviour::ResetsLate {
                            _ = self.links.lock().await.recv().await;
                            return Ok(());
                        }
                        // Only the first one brings a link.
                        if let Ok(link) = self.links.lock().await.try_recv() {
                            tokio::spawn(agent(link, self.running.clone(), ended.clone()));
                        }
                        send(&mut stream, &ToHost::Linked).await?;
                        if self.behaviour == Behaviour::GuestRepeats {
                            send(&mut stream, &ToHost::Ready).await?;
                        }
                    }
                    ToGuest::Clock { .. } => {}
                    ToGuest::Shutdown => {
                        self.recorder.write(&json!({"guest": "Shutdown"}));
                        let ignored = [Behaviour::IgnoresShutdown, Behaviour::IgnoresEverything];
                        if ignored.contains(&self.behaviour) {
                            continue;
                        }
                        if parting {
                            self.exit.send_replace(Some(0));
                        } else {
                            send(&mut stream, &ToHost::AgentExited { wait_status: KILLED }).await?;
                            parting = true;
                        }
                    }
                }
            }
        }
    }
}

async fn send(stream: &mut UnixStream, message: &ToHost) -> io::Result<()> {
    stream.write_all(&control::encode(message).unwrap()).await
}

/// Serves a link behind a gate that is open while the machine runs.
async fn agent(link: UnixStream, running: watch::Receiver<bool>, ended: mpsc::Sender<()>) {
    let (inside, outside) = duplex(64 << 10);
    let (from_host, to_host) = link.into_split();
    let (from_agent, to_agent) = split(outside);
    tokio::spawn(pass(from_host, to_agent, running.clone()));
    tokio::spawn(pass(from_agent, to_host, running));
    let (reader, writer) = split(inside);
    _ = session::serve(reader, writer, Arc::new(Toy)).await;
    _ = ended.send(()).await;
}

async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, mut running: watch::Receiver<bool>) {
    let mut chunk = [0; 4096];
    while let Ok(read @ 1..) = from.read(&mut chunk).await {
        _ = running.wait_for(|running| *running).await;
        if to.write_all(&chunk[..read]).await.is_err() {
            break;
        }
    }
    _ = to.shutdown().await;
}
