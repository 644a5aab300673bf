//! The functions that cold starts are measured with: the same work everywhere, in the form each runtime wants. No two
//! have the same source, so that nobody starts one from what it kept of another.

use std::fmt::Write as _;

const SMALL: &str = include_str!("../../rivals/small.js");
const MODULES: &str = include_str!("../../rivals/modules.js");
const SEPARATOR: &str = "// ---\n";

/// Bytes of the large function.
const LARGE: usize = 300_000;
/// One module in so many is loaded and called; the others are what a bundle carries along.
const USED: usize = 4;

/// What runs a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Platform {
    Nex,
    Workerd,
    Deno,
    Node,
}

/// A function without name.
#[derive(Debug, Clone)]
pub(crate) struct Bundle {
    /// For the report.
    pub(crate) label: &'static str,
    body: String,
}

impl Bundle {
    /// A hand-written function of 1 KB.
    pub(crate) fn small() -> Self {
        Self {
            label: "1 KB function",
            body: SMALL.to_owned(),
        }
    }

    /// A function of 300 KB, as bundlers make them of an application: some 200 modules, a quarter of them in use.
    pub(crate) fn large() -> Self {
        let templates: Vec<&str> = MODULES.split(SEPARATOR).skip(1).collect();
        let mut words = Words(1);
        let mut body = "\
const modules = new Map();

function define(name, factory) {
  modules.set(name, { factory, exports: undefined });
}

function load(name) {
  const module = modules.get(name);
  if (!module) throw new Error(`no module ${name}`);
  if (!module.exports) {
    module.exports = {};
    module.factory(module.exports, load);
  }
  return module.exports;
}

"
        .to_owned();
        let mut names = Vec::new();
        for template in templates.iter().cycle() {
            if body.len() >= LARGE {
                break;
            }
            let name = format!("{}/{}-{}.js", words.word(), words.word(), names.len());
            _ = writeln!(body, "// {name}");
            words.fill(template, &name, &mut body);
            names.push(name);
        }
        body.push_str("const used = [\n");
        for name in names.iter().step_by(USED) {
            _ = writeln!(body, "  \"{name}\",");
        }
        body.push_str(
            "].map(load);\n\nfunction handle(text) {\n  if (!used.every((module) => module.check(text))) throw new \
             Error(\"a module failed\");\n  return `${ID} ${text}`;\n}\n",
        );
        Self {
            label: "300 KB bundle",
            body,
        }
    }

    /// The function with this name. Its reply is its name, a space, and the request.
    pub(crate) fn source(&self, id: &str, platform: Platform) -> String {
        let body = &self.body;
        let entry = match platform {
            Platform::Nex => "export default (msg) => handle(msg.text());",
            Platform::Workerd => {
                "export default {\n  async fetch(request) {\n    return new Response(handle(await request.text()));\n  },\n};"
            }
            Platform::Deno => {
                "self.onmessage = ({ data }) => self.postMessage(handle(new TextDecoder().decode(data)));"
            }
            Platform::Node => {
                "const { parentPort } = require(\"node:worker_threads\");\nparentPort.on(\"message\", (data) => \
                 parentPort.postMessage(handle(new TextDecoder().decode(data))));"
            }
        };
        format!("const ID = \"{id}\";\n{body}\n{entry}\n")
    }
}

/// The reply of the function with this name.
pub(crate) fn reply(id: &str, request: &str) -> String {
    format!("{id} {request}")
}

/// Words and numbers that look like somebody's and are the same in every run.
struct Words(u64);

impl Words {
    /// The high bits of a linear congruential generator, with the factor of Knuth's MMIX.
    fn next(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % end
    }

    fn word(&mut self) -> String {
        const SYLLABLES: [&str; 16] = [
            "ra", "lo", "min", "ter", "sa", "vo", "ki", "den", "pul", "ga", "res", "to", "bi", "chan", "ne", "wor",
        ];
        (0..2 + self.next(2))
            .map(|_| SYLLABLES[self.next(SYLLABLES.len() as u64) as usize])
            .collect()
    }

    fn fill(&mut self, template: &str, name: &str, text: &mut String) {
        for (index, part) in template.split("__").enumerate() {
            if index % 2 == 0 {
                text.push_str(part);
                continue;
            }
            match part {
                "name" => text.push_str(name),
                "word" => text.push_str(&self.word()),
                "number" => _ = write!(text, "{}", 100 + self.next(900)),
                other => _ = write!(text, "__{other}__"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

    use nex_runtime::harness::Harness;

    use super::*;

    #[test]
    fn sizes_are_what_they_are_called() {
        for platform in [Platform::Nex, Platform::Workerd, Platform::Deno, Platform::Node] {
            let small = Bundle::small().source("small-0001", platform).len();
            assert!((950..=1150).contains(&small), "{platform:?}: {small}");
            let large = Bundle::large().source("large-0001", platform).len();
            assert!((298_000..=308_000).contains(&large), "{platform:?}: {large}");
        }
    }

    #[test]
    fn names_make_sources_differ_and_nothing_else_does() {
        let [one, two] = ["one", "two"].map(|id| Bundle::large().source(id, Platform::Nex));
        assert_ne!(one, two);
        assert_eq!(one.replace("\"one\"", "\"two\""), two);
        assert!(!one.contains("__"));
    }

    #[tokio::test]
    async fn replies_are_as_told() {
        let harness = Harness::new().unwrap();
        for bundle in [Bundle::small(), Bundle::large()] {
            let source = bundle.source("f-1", Platform::Nex);
            let function = harness.load(source).await.unwrap();
            let request = format!("{:0128}", 7);
            let answer = function.call("test", request.clone()).await.unwrap();
            assert_eq!(answer.body, reply("f-1", &request), "{}", bundle.label);
        }
    }
}
