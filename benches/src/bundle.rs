//! Generated JavaScript that looks like what bundlers make: many small functions, classes, tables and strings, of which a
//! start runs the top level and a call a tenth.

use std::fmt::Write;

/// How the bundle ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Script,
    Module,
}

/// About that many bytes of source that echo their payload.
pub(crate) fn generate(form: Form, bytes: usize) -> String {
    let mut source = String::from("const registry = new Map();\n");
    let mut parts = 0;
    while source.len() + 200 < bytes {
        part(&mut source, parts, bytes);
        parts += 1;
    }
    let calls = (parts / 10).max(1).min(parts);
    let body = format!(
        "let sum = 0;\n  for (let n = 0; n < {calls}; n++) sum += registry.get(n)?.(`key${{n}}`, n) ?? 0;\n  \
         if (Number.isNaN(sum)) throw new Error('not a number');\n"
    );
    // Writing to a string cannot fail.
    _ = match form {
        Form::Script => write!(source, "(subject, payload) => {{\n  {body}  return payload;\n}}\n"),
        Form::Module => write!(
            source,
            "const main = (msg) => {{\n  {body}  return msg.data;\n}};\nexport {{ main as default }};\n"
        ),
    };
    source
}

fn part(source: &mut String, n: usize, bytes: usize) {
    if bytes < 2000 {
        _ = writeln!(
            source,
            "function step{n}(key, n) {{\n  const text = `${{key}}:${{n}}`;\n  return text.length + {n};\n}}\nregistry.set({n}, step{n});"
        );
        return;
    }
    _ = writeln!(
        source,
        r#"// node_modules/package-{n}/index.js
const table{n} = {{ name: "package-{n}", version: "1.{n}.0", keys: ["alpha", "beta", "gamma{n}"], limits: {{ low: {n}, high: {n}e3 }} }};
function normalise{n}(value, options = {{}}) {{
  if (typeof value !== "string") throw new TypeError("package-{n}: expected a string, got " + typeof value);
  const {{ trim = true, lower = false }} = options;
  let text = trim ? value.trim() : value;
  if (lower) text = text.toLowerCase();
  return text.replace(/[^a-z0-9{n}_-]+/giu, "-");
}}
class Store{n} {{
  #entries = new Map();
  static defaults = {{ size: {n}, eviction: "least-recently-used" }};
  constructor(limit = Store{n}.defaults.size) {{
    this.limit = limit;
  }}
  get size() {{
    return this.#entries.size;
  }}
  set(key, value) {{
    if (this.#entries.size >= this.limit && this.limit > 0) {{
      const [oldest] = this.#entries.keys();
      this.#entries.delete(oldest);
    }}
    this.#entries.set(normalise{n}(key), value);
    return this;
  }}
  async load(keys, fetcher) {{
    for (const key of keys) {{
      try {{
        this.set(key, await fetcher(key));
      }} catch (error) {{
        throw new Error(`package-{n}: ${{key}} could not be loaded: ${{error.message}}`, {{ cause: error }});
      }}
    }}
    return [...this.#entries].map(([key, value]) => ({{ key, value }}));
  }}
}}
registry.set({n}, (key, n) => {{
  const store = new Store{n}(4);
  for (const suffix of table{n}.keys) store.set(key + suffix, n);
  return store.size + table{n}.limits.low;
}});"#
    );
}
