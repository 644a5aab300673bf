//! The functions that cold starts are measured with: the same work everywhere, in the form each runtime wants. No two
//! have the same source, so that nobody starts one from what it kept of another.

use nex_node::bench::body;

const SMALL: &str = include_str!("../../rivals/small.js");
const LARGE: &str = include_str!("../../rivals/large.js");
/// Bytes of the large function.
const LARGE_BYTES: usize = 300_000;

/// What runs a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Platform {
    Nex,
    Workerd,
    Deno,
    Node,
}

impl Platform {
    /// How it is told what to call for a message.
    fn entry(self) -> &'static str {
        match self {
            Self::Nex => include_str!("../../rivals/entry-nex.js"),
            Self::Workerd => include_str!("../../rivals/entry-workerd.js"),
            Self::Deno => include_str!("../../rivals/entry-deno.js"),
            Self::Node => include_str!("../../rivals/entry-node.js"),
        }
    }
}

/// How much code a function is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Size {
    /// Written by hand, 1 KB.
    Small,
    /// What bundlers make of an application, 300 KB: much code, little of it used by any one call.
    Large,
}

impl Size {
    /// For the report.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Small => "1 KB function",
            Self::Large => "300 KB bundle",
        }
    }

    /// The function with this number.
    pub(crate) fn source(self, number: u64, platform: Platform) -> String {
        let id = format!("const ID = \"{}\";\n", name(number));
        let entry = platform.entry();
        match self {
            Self::Small => [&id, SMALL, entry].concat(),
            Self::Large => body::bundle(&[&id, LARGE, entry].concat(), LARGE_BYTES, number),
        }
    }
}

/// What the function with this number is called.
pub(crate) fn name(number: u64) -> String {
    format!("f-{number:06}")
}

/// Its reply: its name, a space, and the request.
pub(crate) fn reply(number: u64, request: &str) -> String {
    format!("{} {request}", name(number))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

    use nex_runtime::harness::Harness;

    use super::*;

    #[test]
    fn sizes_are_what_they_are_called() {
        for platform in [Platform::Nex, Platform::Workerd, Platform::Deno, Platform::Node] {
            let small = Size::Small.source(1, platform).len();
            assert!((950..=1150).contains(&small), "{platform:?}: {small}");
            assert_eq!(Size::Large.source(1, platform).len(), LARGE_BYTES, "{platform:?}");
        }
    }

    #[test]
    fn no_two_functions_are_the_same() {
        for size in [Size::Small, Size::Large] {
            assert_ne!(size.source(1, Platform::Nex), size.source(2, Platform::Nex));
            assert_eq!(size.source(1, Platform::Nex), size.source(1, Platform::Nex));
        }
    }

    #[tokio::test]
    async fn replies_are_as_told() {
        let harness = Harness::new().unwrap();
        for size in [Size::Small, Size::Large] {
            let function = harness.load(size.source(7, Platform::Nex)).await.unwrap();
            let request = format!("{:0128}", 7);
            let answer = function.call("test", request.clone()).await.unwrap();
            assert_eq!(answer.body, reply(7, &request), "{size:?}");
        }
    }
}
