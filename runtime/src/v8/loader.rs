//! Source files, and the loader that refuses imports: a function is one file.

use std::sync::OnceLock;

use bytes::Bytes;
use deno_core::{
    ModuleLoadOptions, ModuleLoadReferrer, ModuleLoadResponse, ModuleLoader, ModuleResolveResponse, ModuleSpecifier,
    ResolutionKind,
};
use deno_error::JsErrorBox;

use super::code_cache::{self, Form, SourceHash};
use crate::engine::{FunctionSpec, LoadError};

/// Characters of a source line shown to each side of a place in it: bundles have very long lines.
const EXCERPT_MARGIN: usize = 60;

/// The source of a function and the URL it has in stack traces.
pub(super) struct SourceFile {
    pub(super) url: ModuleSpecifier,
    pub(super) hash: SourceHash,
    /// UTF-8. The artefact of the specification, not a copy.
    code: Bytes,
    ascii: bool,
    /// Known once it has been compiled.
    form: OnceLock<Form>,
}

impl SourceFile {
    pub(super) fn of(spec: &FunctionSpec) -> Result<Self, LoadError> {
        let url = ModuleSpecifier::parse(&format!("file:///{}.js", spec.name))
            .map_err(|error| LoadError::InvalidArtifact(format!("name {:?}: {error}", spec.name)))?;
        let code = std::str::from_utf8(&spec.source)
            .map_err(|error| LoadError::InvalidArtifact(format!("the source is not UTF-8: {error}")))?;
        Ok(Self {
            url,
            hash: code_cache::hash(code.as_bytes()),
            ascii: code.is_ascii(),
            code: spec.source.clone(),
            form: OnceLock::new(),
        })
    }

    /// UTF-8.
    pub(super) fn code(&self) -> &Bytes {
        &self.code
    }

    pub(super) fn is_ascii(&self) -> bool {
        self.ascii
    }

    /// How it was compiled before.
    pub(super) fn form(&self) -> Option<Form> {
        self.form.get().copied()
    }

    pub(super) fn remember(&self, form: Form) {
        // It never changes.
        _ = self.form.set(form);
    }

    /// Whether the word `export` is in it as modules use it. It may be in a comment: this is a guess, which saves a
    /// module from being parsed as a script up to its first `export`.
    pub(super) fn looks_like_module(&self) -> bool {
        let code = String::from_utf8_lossy(&self.code);
        code.match_indices("export").any(|(at, word)| {
            let before = code[..at].chars().next_back();
            let after = code[at + word.len()..].chars().next();
            !before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '_' | '$' | '.'))
                && after.is_some_and(|c| c.is_whitespace() || matches!(c, '{' | '*' | '/'))
        })
    }

    /// The line, cut around the column, and a mark below it, each after a line break; lines and columns count from 1.
    pub(super) fn excerpt(&self, line: i64, column: i64) -> String {
        let index = |number: i64| usize::try_from(number - 1).ok();
        let (Some(line), Some(column)) = (index(line), index(column)) else {
            return String::new();
        };
        let code = String::from_utf8_lossy(&self.code);
        let Some(line) = code.lines().nth(line) else {
            return String::new();
        };
        let skipped = column.saturating_sub(EXCERPT_MARGIN);
        let shown: String = line.chars().skip(skipped).take(2 * EXCERPT_MARGIN).collect();
        let indent = shown.chars().count() - shown.trim_start().chars().count();
        let mark = (column - skipped).saturating_sub(indent);
        format!("\n    {}\n    {:mark$}^", shown.trim(), "")
    }
}

/// Refuses every import. The static ones of a function are refused [at its start](super::isolate); these are the dynamic
/// ones.
pub(super) struct NoImports;

impl ModuleLoader for NoImports {
    fn resolve(&self, specifier: &str, _referrer: &str, _kind: ResolutionKind) -> ModuleResolveResponse {
        Err(refused(specifier))
    }

    fn load(
        &self,
        specifier: &ModuleSpecifier,
        _referrer: Option<&ModuleLoadReferrer>,
        _options: ModuleLoadOptions,
    ) -> ModuleLoadResponse {
        ModuleLoadResponse::Sync(Err(refused(specifier.as_str())))
    }
}

fn refused(specifier: &str) -> JsErrorBox {
    JsErrorBox::type_error(refusal(specifier))
}

/// Characters of a specifier that are shown.
const MAX_SPECIFIER: usize = 200;

/// What is said to every import.
pub(super) fn refusal(specifier: &str) -> String {
    let specifier: String = specifier.chars().take(MAX_SPECIFIER).collect();
    format!("cannot import {specifier:?}: a function is one file; bundle what it imports into it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_told_by_the_word_export() {
        let guess = |source: &'static str| {
            let spec = FunctionSpec {
                id: String::new(),
                namespace: String::new(),
                name: "f".into(),
                workload_type: "v8".into(),
                source: source.into(),
                vars: Default::default(),
                limits: Default::default(),
            };
            SourceFile::of(&spec).is_ok_and(|file| file.looks_like_module())
        };
        for source in [
            "export default 1",
            "let f;export{f as default}",
            "let é\nexport\tdefault é",
            "export*from 'x'",
        ] {
            assert!(guess(source), "{source}");
        }
        for source in [
            "",
            "export",
            "exports.f = 1",
            "module.export = 1",
            "__export(f)",
            "_export default",
            "x.export {}",
        ] {
            assert!(!guess(source), "{source}");
        }
    }
}
