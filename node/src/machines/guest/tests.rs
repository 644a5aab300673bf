#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use tokio::io::{DuplexStream, duplex};

use super::*;

const PATIENCE: Duration = Duration::from_secs(5);

/// A guest whose every word the test chooses.
struct Script {
    io: DuplexStream,
    decoder: Decoder,
}

impl Script {
    fn new() -> (Self, DuplexStream) {
        let (ours, theirs) = duplex(1 << 20);
        let script = Self {
            io: ours,
            decoder: Decoder::default(),
        };
        (script, theirs)
    }

    async fn say(&mut self, message: &ToHost) {
        self.io.write_all(&control::encode(message).unwrap()).await.unwrap();
    }

    async fn hear(&mut self) -> ToGuest {
        let mut chunk = [0; 4096];
        loop {
            if let Some(message) = self.decoder.decode().unwrap() {
                return message;
            }
            let read = self.io.read(&mut chunk).await.unwrap();
            assert_ne!(read, 0, "the host closed the channel");
            self.decoder.push(&chunk[..read]);
        }
    }
}

fn booted() -> ToHost {
    ToHost::Booted {
        version: VERSION,
        uptime_ms: 900,
    }
}

async fn linked() -> (Script, GuestControl) {
    let (mut script, io) = Script::new();
    let mut control = GuestControl::restored(io);
    script.say(&ToHost::Linked).await;
    control.resume(PATIENCE).await.unwrap();
    assert_eq!(script.hear().await.name(), "Resume");
    (script, control)
}

#[tokio::test]
async fn a_guest_boots_is_linked_and_ends() {
    let (mut script, io) = Script::new();
    let guest = tokio::spawn(async move {
        script.say(&booted()).await;
        let ToGuest::Start { args, env } = script.hear().await else {
            panic!("not Start")
        };
        assert_eq!(args, [CONFINEMENT, "a"]);
        assert_eq!(env, [("B".to_owned(), "c".to_owned())]);
        script.say(&ToHost::Ready).await;
        let ToGuest::Resume { unix_nanos, seed } = script.hear().await else {
            panic!("not Resume")
        };
        assert!(unix_nanos > 1_700_000_000_000_000_000);
        assert!(seed.as_bytes().iter().any(|&byte| byte != 0));
        script.say(&ToHost::Linked).await;
        script.say(&ToHost::AgentExited { wait_status: 70 << 8 }).await;
        assert_eq!(script.hear().await, ToGuest::Shutdown);
    });
    let mut control = GuestControl::booting(io);
    assert_eq!(control.booted(PATIENCE).await.unwrap(), Duration::from_millis(900));
    control
        .start(&["a".to_owned()], &[("B".to_owned(), "c".to_owned())], PATIENCE)
        .await
        .unwrap();
    control.resume(PATIENCE).await.unwrap();
    let handle = control.watch(|error| panic!("{error}")).unwrap();
    guest.await.unwrap();
    assert_eq!(handle.agent_exit().and_then(|status| status.code()), Some(70));
}

#[tokio::test]
async fn no_two_guests_get_the_same_seed() {
    let mut seeds = Vec::new();
    for _ in 0..2 {
        let (mut script, io) = Script::new();
        script.say(&ToHost::Linked).await;
        GuestControl::restored(io).resume(PATIENCE).await.unwrap();
        let ToGuest::Resume { seed, .. } = script.hear().await else {
            panic!("not Resume")
        };
        seeds.push(seed);
    }
    assert!(seeds[0] != seeds[1]);
}

#[tokio::test]
async fn what_comes_out_of_turn_is_refused() {
    for message in [ToHost::Ready, ToHost::Linked] {
        let (mut script, io) = Script::new();
        script.say(&message).await;
        let error = GuestControl::booting(io).booted(PATIENCE).await.unwrap_err();
        assert!(matches!(error, GuestError::OutOfOrder { .. }), "{error}");
    }
    let (_script, io) = Script::new();
    let error = GuestControl::booting(io).resume(PATIENCE).await.unwrap_err();
    assert_eq!(error.to_string(), "the guest is booting; it must be ready for that");
}

#[tokio::test]
async fn a_guest_of_another_version_is_refused() {
    let (mut script, io) = Script::new();
    let version = VERSION + 1;
    script.say(&ToHost::Booted { version, uptime_ms: 0 }).await;
    let error = GuestControl::booting(io).booted(PATIENCE).await.unwrap_err();
    assert!(
        matches!(error, GuestError::Version { theirs } if theirs == version),
        "{error}"
    );
}

#[tokio::test]
async fn a_guest_that_gives_up_says_why_in_one_line() {
    let (mut script, io) = Script::new();
    script.say(&ToHost::failed("no root\n\u{1b}[31mfs".to_owned())).await;
    let error = GuestControl::booting(io).booted(PATIENCE).await.unwrap_err();
    assert_eq!(error.to_string(), "the guest: no root  [31mfs");
}

#[tokio::test]
async fn an_agent_that_ends_before_its_time_is_told_apart() {
    let (mut script, io) = Script::new();
    script.say(&booted()).await;
    script.say(&ToHost::AgentExited { wait_status: 9 }).await;
    let mut control = GuestControl::booting(io);
    control.booted(PATIENCE).await.unwrap();
    let error = control.start(&[], &[], PATIENCE).await.unwrap_err();
    assert!(error.to_string().contains("signal: 9"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_guest_times_out() {
    let (_script, io) = Script::new();
    let error = GuestControl::booting(io).booted(PATIENCE).await.unwrap_err();
    assert!(matches!(error, GuestError::TimedOut { .. }), "{error}");
}

#[tokio::test]
async fn noise_and_cut_off_messages_end_the_conversation() {
    for noise in [&[0xff; 64][..], &[1, 0, 0, 0, 77], &[0, 0, 0, 0], &[9, 0, 0, 0, 1]] {
        let (mut script, io) = Script::new();
        script.io.write_all(noise).await.unwrap();
        drop(script);
        let error = GuestControl::booting(io).booted(PATIENCE).await.unwrap_err();
        assert!(
            matches!(error, GuestError::Malformed(_) | GuestError::Closed(_)),
            "{noise:?}: {error}"
        );
    }
}

#[tokio::test]
async fn a_linked_guest_that_says_more_than_it_should_is_lost() {
    let (mut script, control) = linked().await;
    let (tell, lost) = tokio::sync::oneshot::channel();
    let _guest = control.watch(|error| tell.send(error.to_string()).unwrap()).unwrap();
    script.say(&ToHost::Ready).await;
    assert_eq!(
        lost.await.unwrap(),
        "the guest sent Ready while AgentExited was waited for"
    );
}

#[tokio::test(start_paused = true)]
async fn a_running_guest_is_told_the_time_and_a_paused_one_is_not() {
    let (mut script, control) = linked().await;
    let guest = control.watch(|error| panic!("{error}")).unwrap();
    assert_eq!(script.hear().await.name(), "Clock");
    guest.pausing().await;
    let silence = timeout(CLOCK_EVERY * 3, script.hear()).await;
    assert!(silence.is_err(), "{silence:?}");
    guest.resumed().await;
    assert_eq!(script.hear().await.name(), "Resume");
    script.say(&ToHost::Linked).await;
    assert_eq!(script.hear().await.name(), "Clock");
    guest.shut_down().await;
    assert_eq!(script.hear().await, ToGuest::Shutdown);
}
