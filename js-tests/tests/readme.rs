//! The function in the repository's README, exactly as it stands there, does what the README says.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

use std::sync::Arc;

use nex_host_services::memory::Memory;
use nex_host_services::{Config, Policy};
use nex_runtime::harness::Harness;

const README: &str = include_str!("../../README.md");

/// The only block of JavaScript in the README.
fn function() -> &'static str {
    let mut blocks = README.split("\n```js\n").skip(1);
    let block = blocks.next().expect("a block of JavaScript");
    assert!(blocks.next().is_none(), "more than one block of JavaScript");
    block.split_once("\n```\n").expect("the end of the block").0
}

#[tokio::test]
async fn the_function_in_the_readme_counts_visits() {
    let source = function();
    assert!(README.contains("ten lines"));
    assert_eq!(source.lines().count(), 10);

    let services = Memory::new().services(Policy::new("default", "visits", Config::default()));
    let harness = Harness::new().unwrap().services(Arc::new(services)).name("visits");
    let visits = harness.load(source).await.unwrap();
    let first = r#"{"hello":"Ada","visits":1}"#;
    assert!(README.contains(&format!("The reply is `{first}`, then `2`")));
    assert_eq!(visits.call("hello.web", "Ada").await.unwrap().body, first);
    let second = visits.call("hello.web", "Ada").await.unwrap();
    assert_eq!(second.body, r#"{"hello":"Ada","visits":2}"#);
    assert_eq!(visits.logs()[0].text, "Ada called hello.web");
}
