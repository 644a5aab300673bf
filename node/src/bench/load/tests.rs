//! The generators against a responder whose behaviour is known.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::*;

/// Long against what a busy machine adds to a wait.
const STALL: Duration = Duration::from_millis(400);
const TIMEOUT: Duration = Duration::from_secs(5);

/// What becomes of a request.
enum Behaviour {
    /// It comes back.
    Echo,
    /// It comes back after a pause in which nothing else does.
    Stall(Duration),
    /// It comes back twice.
    Twice,
    /// Nothing comes.
    Drop,
    /// Other bytes come.
    Wrong,
    /// An error comes.
    Error,
}

/// Answers one request after the other, each as `behaviour` says of its number.
struct Fake {
    requests: UnboundedSender<(u64, Bytes)>,
    answers: UnboundedReceiver<Answer>,
}

impl Fake {
    fn start(behaviour: impl Fn(u64) -> Behaviour + Send + 'static) -> Self {
        let (requests, mut incoming) = unbounded_channel::<(u64, Bytes)>();
        let (sender, answers) = unbounded_channel();
        tokio::spawn(async move {
            while let Some((key, payload)) = incoming.recv().await {
                let answer = |outcome| _ = sender.send(Answer { key, outcome });
                match behaviour(key) {
                    Behaviour::Echo => answer(Ok(payload)),
                    Behaviour::Stall(pause) => {
                        tokio::time::sleep(pause).await;
                        answer(Ok(payload));
                    }
                    Behaviour::Twice => {
                        answer(Ok(payload.clone()));
                        answer(Ok(payload));
                    }
                    Behaviour::Drop => {}
                    Behaviour::Wrong => answer(Ok(Bytes::from_static(b"something else"))),
                    Behaviour::Error => answer(Err("no".to_owned())),
                }
            }
        });
        Self { requests, answers }
    }

    fn generator(self, timeout: Duration) -> Generator<Self> {
        Generator::new(self, Payload::echo(64), timeout)
    }
}

#[derive(Clone)]
struct FakeAsk(UnboundedSender<(u64, Bytes)>);

impl Ask for FakeAsk {
    async fn ask(&self, _to: usize, key: u64, payload: Bytes) -> Result<(), String> {
        self.0.send((key, payload)).map_err(|_| "gone".to_owned())
    }
}

impl Target for Fake {
    type Ask = FakeAsk;

    fn asker(&self) -> FakeAsk {
        FakeAsk(self.requests.clone())
    }

    async fn answer(&mut self) -> Option<Answer> {
        self.answers.recv().await
    }
}

#[tokio::test]
async fn a_stall_shows_in_the_latency_of_all_who_had_to_wait() {
    // At request 50 of 200 nothing is answered for 400 ms, in which 80 more are due.
    let fake = Fake::start(|key| {
        if key == 50 {
            Behaviour::Stall(STALL)
        } else {
            Behaviour::Echo
        }
    });
    let duration = Duration::from_secs(1);
    let measured = fake.generator(TIMEOUT).open_loop(0, 200.0, duration).await.unwrap();
    let Tally {
        latencies, failures, ..
    } = measured.tally;
    assert_eq!(failures, Failures::default());
    assert_eq!(latencies.len(), 200);
    assert_eq!(measured.lags.len(), 200);
    let stall = STALL.as_secs_f64() * 1e6;
    assert!(latencies.max() >= stall, "{}", latencies.max());
    // 40 of 200 were due in the first half of the stall and had to wait for half of it at least.
    assert!(latencies.quantile(0.81) >= stall / 2.0, "{}", latencies.quantile(0.81));

    // It also shows when it was.
    let slowest = measured.timeline.bins.iter().map(Latencies::max).enumerate();
    let (slowest, _) = slowest.max_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    assert_eq!(slowest, 10, "5 ms apart, 5 in each of 40 parts");

    // Whoever asks one after the other, and counts from when it got to ask, sees one slow call of many.
    let fake = Fake::start(|key| {
        if key == 50 {
            Behaviour::Stall(STALL)
        } else {
            Behaviour::Echo
        }
    });
    let closed = fake.generator(TIMEOUT).closed_loop(0, 1, duration).await.unwrap();
    assert!(closed.tally.latencies.max() >= stall);
    assert!(closed.tally.latencies.quantile(0.81) < stall / 2.0);
}

#[tokio::test]
async fn what_fails_counts_as_the_longest_wait() {
    let timeout = Duration::from_millis(300);
    let fake = Fake::start(|key| match key {
        10 => Behaviour::Drop,
        20 => Behaviour::Wrong,
        30 => Behaviour::Error,
        40 => Behaviour::Twice,
        _ => Behaviour::Echo,
    });
    let measured = fake
        .generator(timeout)
        .open_loop(0, 500.0, Duration::from_millis(200))
        .await
        .unwrap();
    let Tally {
        latencies, failures, ..
    } = measured.tally;
    assert_eq!(latencies.len(), 100);
    let Failures {
        errors,
        wrong,
        missing,
        duplicates,
        first,
    } = failures;
    assert_eq!((errors, wrong, missing, duplicates), (1, 1, 1, 1));
    assert_eq!(
        first.as_deref(),
        Some("a reply of 14 bytes, expected 64"),
        "the first to be known"
    );
    let longest = timeout.as_secs_f64() * 1e6;
    for quantile in [0.98, 1.0] {
        let latency = latencies.quantile(quantile);
        assert!((latency / longest - 1.0).abs() < 0.001, "{quantile}: {latency}");
    }
    let bins: u64 = measured.timeline.bins.iter().map(Latencies::len).sum();
    assert_eq!(bins, 100);
}

#[tokio::test]
async fn a_closed_loop_goes_on_past_calls_that_fail() {
    let timeout = Duration::from_millis(50);
    let fake = Fake::start(|key| match key {
        3 => Behaviour::Drop,
        4 => Behaviour::Wrong,
        5 => Behaviour::Error,
        6 => Behaviour::Twice,
        _ => Behaviour::Echo,
    });
    let measured = fake
        .generator(timeout)
        .closed_loop(0, 4, Duration::from_millis(200))
        .await
        .unwrap();
    let Failures {
        errors,
        wrong,
        missing,
        duplicates,
        ..
    } = measured.tally.failures;
    assert_eq!((errors, wrong, missing, duplicates), (1, 1, 1, 1));
    assert!(measured.calls > 10);
    // All that were sent are counted, those in flight at the end included.
    assert!(measured.tally.latencies.len() >= measured.calls + 3);
    assert!(measured.per_second > 0.0);
}

#[tokio::test]
async fn silence_ends() {
    let timeout = Duration::from_millis(20);
    let mut generator = Fake::start(|_| Behaviour::Drop).generator(timeout);
    assert_eq!(generator.call(0).await.unwrap(), Err(Miss::Missing));
    let closed = generator.closed_loop(0, 3, Duration::from_millis(10)).await.unwrap();
    assert_eq!((closed.calls, closed.tally.failures.missing), (0, 3));
    let open = generator.open_loop(0, 100.0, Duration::from_millis(50)).await.unwrap();
    assert_eq!((open.tally.failures.missing, open.tally.latencies.len()), (5, 5));
}

#[tokio::test]
async fn late_answers_are_not_taken_for_those_to_later_calls() {
    // Nothing is answered until the first three calls have been given up.
    let fake = Fake::start(|key| {
        if key == 0 {
            Behaviour::Stall(STALL)
        } else {
            Behaviour::Echo
        }
    });
    let mut generator = fake.generator(Duration::from_millis(10));
    for _ in 0..3 {
        assert_eq!(generator.call(0).await.unwrap(), Err(Miss::Missing));
    }
    generator.timeout = TIMEOUT;
    assert!(generator.call(0).await.unwrap().unwrap() < TIMEOUT);
    let open = generator.open_loop(0, 100.0, Duration::from_millis(50)).await.unwrap();
    assert_eq!(open.tally.failures, Failures::default());
}

#[tokio::test]
async fn a_target_that_is_gone_ends_the_measurement() {
    let gone = || {
        let (requests, _) = unbounded_channel();
        let (_, answers) = unbounded_channel();
        Fake { requests, answers }.generator(TIMEOUT)
    };
    assert_eq!(gone().call(0).await, Err(LoadError::Send("gone".to_owned())));
    let duration = Duration::from_millis(10);
    assert!(gone().closed_loop(0, 1, duration).await.is_err());
    assert!(gone().open_loop(0, 1000.0, duration).await.is_err());
}
