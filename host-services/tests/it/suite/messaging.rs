//! Messaging cases.

super::in_every_world!(cases:
    publish_reaches_subscribers
    publish_to_nobody_is_fine
    request_gets_the_first_reply
    nobody_listens
    nobody_answers
    request_many_gathers_all
    request_many_stops_when_it_has_enough
    request_many_has_a_limit
    functions_can_reply
    malformed_messages
    reserved_subjects
    oversized_messages
);

mod cases {
    use std::num::{NonZeroU32, NonZeroUsize};
    use std::time::{Duration, Instant};

    use bytes::Bytes;
    use nex_host_services::{Config, SubjectPattern};
    use nex_runtime::host_services::{Headers, HostErrorCode as Code};
    use nex_runtime::invocation::Reply;

    use crate::world::*;

    /// No test gets near it unless a call waits although it need not.
    const LONG_MS: u32 = 15_000;

    pub(super) async fn publish_reaches_subscribers(world: World) {
        let services = world.services().await;
        let mut exact = world.subscribe("news.today").await;
        let mut wild = world.subscribe("news.>").await;
        let sent = headers(&[("X-B", "2"), ("X-A", "1"), ("X-A", "a: b")]);
        services.publish("news.today", sent, all_bytes()).await.unwrap();
        for received in [exact.recv().await.unwrap(), wild.recv().await.unwrap()] {
            assert_eq!(received.subject, "news.today");
            assert_eq!(received.reply, None);
            assert_eq!(
                received.headers,
                headers(&[("X-A", "1"), ("X-A", "a: b"), ("X-B", "2")])
            );
            assert_eq!(received.payload, all_bytes());
        }
    }

    pub(super) async fn publish_to_nobody_is_fine(world: World) {
        let services = world.services().await;
        services.publish("nobody.listens", Headers::new(), "").await.unwrap();
    }

    pub(super) async fn request_gets_the_first_reply(world: World) {
        let services = world.services().await;
        world
            .respond("echo.*", |message| {
                let mut headers = message.headers.clone();
                headers.push(("X-Subject".to_owned(), message.subject.clone()));
                Some(Reply {
                    headers,
                    body: message.payload.clone(),
                })
            })
            .await;
        let sent = headers(&[("X-Id", "7")]);
        let (received, payload) = services.request("echo.a", sent, all_bytes(), None).await.unwrap();
        assert_eq!(received, headers(&[("X-Id", "7"), ("X-Subject", "echo.a")]));
        assert_eq!(payload, all_bytes());
        let (_, payload) = services.request("echo.b", Headers::new(), "", None).await.unwrap();
        assert!(payload.is_empty());
        // As large as messages get.
        let large = content(1_000_000);
        let (_, payload) = services
            .request("echo.c", Headers::new(), large.clone(), None)
            .await
            .unwrap();
        assert_eq!(payload, large);
    }

    pub(super) async fn nobody_listens(world: World) {
        let services = world.services().await;
        let one = services.request("nobody", Headers::new(), "", Some(LONG_MS)).await;
        assert_code(one, Code::NoResponders);
        let many = services.request_many("nobody", "", Some(LONG_MS), None).await;
        assert_code(many, Code::NoResponders);
    }

    pub(super) async fn nobody_answers(world: World) {
        let services = world.services().await;
        let _listening = world.subscribe("silence").await;
        let one = services.request("silence", Headers::new(), "", Some(50)).await;
        assert_code(one, Code::Timeout);
        let many = services.request_many("silence", "", Some(50), None).await;
        assert_eq!(many.unwrap(), []);

        let mut config = Config::default();
        config.messaging.config.request_timeout_ms = NonZeroU32::new(30).unwrap();
        config.messaging.config.request_many_timeout_ms = NonZeroU32::new(30).unwrap();
        let impatient = world.configured(config).await;
        let one = impatient.request("silence", Headers::new(), "", None).await;
        assert_code(one, Code::Timeout);
        assert_eq!(impatient.request_many("silence", "", None, None).await.unwrap(), []);
    }

    pub(super) async fn request_many_gathers_all(world: World) {
        let services = world.services().await;
        for name in ["one", "two", "three"] {
            world
                .respond("who", move |message| {
                    let body = [name.as_bytes(), &message.payload].concat();
                    Some(Reply {
                        headers: headers(&[("X-Name", name)]),
                        body: body.into(),
                    })
                })
                .await;
        }
        let replies = services.request_many("who", "?", None, None).await.unwrap();
        let mut names: Vec<_> = replies
            .iter()
            .map(|(headers, body)| (headers[0].1.as_str(), body.as_ref()))
            .collect();
        names.sort_unstable();
        let expected: [(&str, &[u8]); 3] = [("one", b"one?"), ("three", b"three?"), ("two", b"two?")];
        assert_eq!(names, expected);
    }

    pub(super) async fn request_many_stops_when_it_has_enough(world: World) {
        let services = world.services().await;
        for _ in 0..3 {
            world
                .respond("who", |_| Some(Reply::from(Bytes::from_static(b"me"))))
                .await;
        }
        let started = Instant::now();
        let replies = services.request_many("who", "", Some(LONG_MS), Some(2)).await.unwrap();
        assert_eq!(replies.len(), 2);
        assert!(started.elapsed() < Duration::from_millis(LONG_MS.into()) / 2);
    }

    pub(super) async fn request_many_has_a_limit(world: World) {
        let mut config = Config::default();
        config.messaging.config.max_gather_bytes = NonZeroUsize::new(1_999).unwrap();
        let services = world.configured(config).await;
        for _ in 0..2 {
            world
                .respond("who", |_| Some(Reply::from(Bytes::from(content(1_000)))))
                .await;
        }
        let replies = services.request_many("who", "", Some(LONG_MS), None).await;
        assert_code(replies, Code::LimitExceeded);
        let one = services.request_many("who", "", Some(LONG_MS), Some(1)).await.unwrap();
        assert_eq!(one.len(), 1);
    }

    pub(super) async fn functions_can_reply(world: World) {
        // Another function, that answers by publishing to the inbox of the one that asks.
        let asking = world.services_of("ns", "asking", Config::default()).await;
        let answering = world.services_of("ns", "answering", Config::default()).await;
        let mut questions = world.subscribe("question").await;
        let answer = tokio::spawn(async move {
            let question = questions.recv().await.unwrap();
            let inbox = question.reply.unwrap();
            answering.publish(&inbox, Headers::new(), "42").await.unwrap();
            // Its connection must live until the message is out.
            answering
        });
        let (_, reply) = asking
            .request("question", Headers::new(), "", Some(LONG_MS))
            .await
            .unwrap();
        assert_eq!(reply, "42");
        answer.await.unwrap();
    }

    pub(super) async fn malformed_messages(world: World) {
        let services = world.services().await;
        let none = Headers::new;
        let long = "x".repeat(2_000);
        for subject in ["", ".", "a.", ".a", "a..b", "a b", "a.*", "a.>", "a\r\nPUB b 0", &long] {
            let invalid = Code::InvalidArgument;
            assert_code(services.publish(subject, none(), "").await, invalid);
            assert_code(services.request(subject, none(), "", None).await, invalid);
            assert_code(services.request_many(subject, "", None, None).await, invalid);
        }
        for (name, value) in [("", "v"), ("a b", "v"), ("a:", "v"), ("a", "v\r\nb: c")] {
            let malformed = headers(&[(name, value)]);
            let sent = services.publish("a", malformed.clone(), "").await;
            assert_code(sent, Code::InvalidArgument);
            let sent = services.request("a", malformed, "", None).await;
            assert_code(sent, Code::InvalidArgument);
        }
        assert_code(services.request("a", none(), "", Some(0)).await, Code::InvalidArgument);
        assert_code(
            services.request_many("a", "", Some(0), None).await,
            Code::InvalidArgument,
        );
        assert_code(
            services.request_many("a", "", None, Some(0)).await,
            Code::InvalidArgument,
        );
    }

    pub(super) async fn reserved_subjects(world: World) {
        let mut config = Config::default();
        config.messaging.config.deny_subjects = vec![SubjectPattern::new("billing.>").unwrap()];
        let services = world.configured(config).await;
        for subject in [
            "$SYS.REQ.SERVER.PING",
            "$JS.API.STREAM.DELETE.KV_hs_ns_other_kv",
            "$NEX.PING",
            "$KV.hs_ns_other_kv.k",
            "$O.hs_ns_other_obj.M.bmFtZQ==",
            "billing.pay.me",
        ] {
            let denied = Code::PermissionDenied;
            assert_code(services.publish(subject, Headers::new(), "").await, denied);
            assert_code(services.request(subject, Headers::new(), "", None).await, denied);
            assert_code(services.request_many(subject, "", None, None).await, denied);
        }
    }

    pub(super) async fn oversized_messages(world: World) {
        let services = world.services().await;
        let mut received = world.subscribe("big").await;
        let max = 1024 * 1024;
        let limit = Code::LimitExceeded;
        let too_large = content(max + 1);
        assert_code(services.publish("big", Headers::new(), too_large.clone()).await, limit);
        assert_code(
            services.request("big", Headers::new(), too_large.clone(), None).await,
            limit,
        );
        assert_code(services.request_many("big", too_large, None, None).await, limit);
        // Headers count too.
        let with_headers = services.publish("big", headers(&[("a", "b")]), content(max)).await;
        assert_code(with_headers, limit);
        services.publish("big", Headers::new(), content(max)).await.unwrap();
        // The connection has survived, and only the last message was sent.
        assert_eq!(received.recv().await.unwrap().payload.len(), max);
    }
}
