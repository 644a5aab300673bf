//! Source code of any size for functions that send back what they get: bundles like those that developers deploy, with
//! most of the code unused by any one call.

use std::fmt::Write as _;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// Bytes of the smallest body.
pub const MIN_BYTES: usize = 512;

/// How a function is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A script, whose last value is the function.
    Script,
    /// A module, whose default export is the function.
    Module,
}

/// The beginning: what bundlers leave at the top.
const HEAD: &str = "\
const modules = new Map();
const define = (name, module) => void modules.set(name, Object.freeze(module));
";

/// The end: one module in eight has a part in a call, and the reply is the message.
const SCRIPT_TAIL: &str = "\
const used = [...modules.values()].filter((_, index) => index % 8 === 0);
(subject, payload) => {
  for (const module of used) module.accepts(payload.length);
  return payload;
};
";
const MODULE_TAIL: &str = "\
const used = [...modules.values()].filter((_, index) => index % 8 === 0);
export default (msg) => {
  for (const module of used) module.accepts(msg.data.length);
  return msg.data;
};
";

const SUBJECTS: [&str; 12] = [
    "Order", "Invoice", "Customer", "Session", "Parcel", "Sensor", "Ticket", "Payment", "Report", "Account", "Route",
    "Catalog",
];
const WORDS: [&str; 16] = [
    "status", "total", "created", "updated", "region", "currency", "amount", "owner", "version", "label", "channel",
    "priority", "weight", "source", "target", "retries",
];

/// A function that replies with the payload of its message, of exactly so many bytes, at least [`MIN_BYTES`]. Bodies with
/// different numbers are different code.
#[must_use]
pub fn echo(form: Form, bytes: usize, number: u64) -> String {
    let tail = match form {
        Form::Script => SCRIPT_TAIL,
        Form::Module => MODULE_TAIL,
    };
    bundle(tail, bytes, number)
}

/// A function of exactly so many bytes, unless `tail` needs more, that ends with `tail`. What stands above it there are
/// `modules`, a `Map` whose values have a function `accepts(size)` that is true of the size of any message.
#[must_use]
pub fn bundle(tail: &str, bytes: usize, number: u64) -> String {
    let mut random = StdRng::seed_from_u64(number);
    let mut source = format!("// Function {number} of a benchmark.\n{HEAD}");
    let end = bytes.max(MIN_BYTES).saturating_sub(tail.len());
    for index in 0.. {
        let module = module(index, &mut random);
        if source.len() + module.len() > end {
            break;
        }
        source.push_str(&module);
    }
    fill(&mut source, end);
    source.push_str(tail);
    source
}

/// Source code that is the function's own and like nobody else's, for functions that are deployed many times.
#[must_use]
pub fn unlike_others(source: &[u8], number: u64) -> Vec<u8> {
    [source, format!("\n// Copy {number} of a benchmark.\n").as_bytes()].concat()
}

/// Comments up to a length.
fn fill(source: &mut String, end: usize) {
    const LINE: usize = 100;
    while source.len() < end {
        let left = (end - source.len()).min(LINE);
        // The shortest comment has three bytes; what is less than that is white space.
        let text = match left {
            0..3 => " ".repeat(left - 1),
            _ => format!("//{}", "-".repeat(left - 3)),
        };
        source.push_str(&text);
        source.push('\n');
    }
}

/// One module of a bundle: a table, a class and some functions, which are defined at the start and seldom called.
fn module(index: u32, random: &mut StdRng) -> String {
    let subject = SUBJECTS[random.random_range(..SUBJECTS.len())];
    let name = format!("{subject}{index}");
    let limit: u32 = random.random_range(1_000_000..100_000_000);
    let mut fields = String::new();
    for _ in 0..random.random_range(3..8) {
        let word = WORDS[random.random_range(..WORDS.len())];
        let value: u32 = random.random_range(..10_000);
        // Writing to a string cannot fail.
        _ = write!(
            fields,
            "\n    {word}{value}: {{ required: {}, maximum: {value} }},",
            value.is_multiple_of(2)
        );
    }
    let digits = random.random_range(3..9);
    format!(
        r#"{{
  const LIMIT = {limit};
  const FIELDS = {{{fields}
  }};
  class {name} {{
    #entries = new Map();
    constructor(options = {{}}) {{
      this.name = options.name ?? "{name}";
      this.limit = options.limit ?? LIMIT;
    }}
    add(key, value) {{
      if (this.#entries.size >= this.limit) throw new RangeError(`${{this.name}}: more than ${{this.limit}} entries`);
      const problems = validate(value);
      if (problems.length > 0) throw new TypeError(`${{this.name}}: ${{problems.join(", ")}}`);
      this.#entries.set(key, {{ ...value, key, added: Date.now() }});
      return this;
    }}
    sum(field) {{
      let sum = 0;
      for (const entry of this.#entries.values()) sum += Number(entry[field] ?? 0);
      return sum;
    }}
    toJSON() {{
      return {{ name: this.name, entries: [...this.#entries.values()] }};
    }}
  }}
  function validate(value) {{
    return Object.entries(FIELDS)
      .filter(([field, rule]) => (value[field] === undefined ? rule.required : value[field] > rule.maximum))
      .map(([field]) => `${{field}} is not valid`);
  }}
  function parse(text) {{
    const match = /^(?<kind>[a-z]+)-(?<number>\d{{{digits}}})(?:\/(?<rest>.*))?$/u.exec(text);
    if (match === null) return undefined;
    const {{ kind, number, rest = "" }} = match.groups;
    return {{ kind, number: Number(number), rest: rest.split("/").filter((part) => part !== "") }};
  }}
  define("{name}", {{ {name}, validate, parse, accepts: (size) => size <= LIMIT }});
}}
"#
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

    use nex_runtime::harness::Harness;

    use super::*;

    #[tokio::test]
    async fn bodies_have_the_size_and_echo() {
        let harness = Harness::new().unwrap();
        let sizes = [MIN_BYTES, 1 << 10, (1 << 10) + 1, (1 << 10) + 2, 50 << 10, 300 << 10];
        for (form, bytes) in [Form::Script, Form::Module]
            .into_iter()
            .flat_map(|form| sizes.map(|bytes| (form, bytes)))
        {
            let body = echo(form, bytes, 7);
            assert_eq!(body.len(), bytes);
            let function = harness.load(body.clone()).await.unwrap();
            assert_eq!(function.call("s", "hello").await.unwrap().body, "hello", "{bytes}");
            let copy = harness.load(unlike_others(body.as_bytes(), 1)).await.unwrap();
            assert_eq!(copy.call("s", "hello").await.unwrap().body, "hello", "{bytes}");
        }
    }

    #[test]
    fn bodies_are_the_same_every_time_and_unlike_each_other() {
        let echo = |number| echo(Form::Module, 10_000, number);
        assert_eq!(echo(1), echo(1));
        let [one, two] = [1, 2].map(echo);
        let same = one.lines().filter(|line| two.contains(line)).count();
        assert!(same < one.lines().count() * 9 / 10, "{same} lines are the same");
        assert!(one.matches("class ").count() > 3);
        assert_ne!(unlike_others(b"x", 1), unlike_others(b"x", 2));
    }
}
