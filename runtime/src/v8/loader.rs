//! Source files, and the loader that refuses imports: a function is one file.

use deno_core::{
    ModuleLoadOptions, ModuleLoadReferrer, ModuleLoadResponse, ModuleLoader, ModuleResolveResponse, ModuleSpecifier,
    ResolutionKind,
};
use deno_error::JsErrorBox;

use crate::engine::{FunctionSpec, LoadError};

/// Characters of a source line shown to each side of a place in it: bundles have very long lines.
const EXCERPT_MARGIN: usize = 60;

/// The source of a function and the URL it has in stack traces.
pub(super) struct SourceFile {
    pub(super) url: ModuleSpecifier,
    pub(super) code: String,
}

impl SourceFile {
    pub(super) fn of(spec: &FunctionSpec) -> Result<Self, LoadError> {
        let url = ModuleSpecifier::parse(&format!("file:///{}.js", spec.name))
            .map_err(|error| LoadError::InvalidArtifact(format!("name {:?}: {error}", spec.name)))?;
        let code = std::str::from_utf8(&spec.source)
            .map_err(|error| LoadError::InvalidArtifact(format!("the source is not UTF-8: {error}")))?;
        Ok(Self {
            url,
            code: code.to_owned(),
        })
    }

    /// The line, cut around the column, and a mark below it, each after a line break; lines and columns count from 1.
    pub(super) fn excerpt(&self, line: i64, column: i64) -> String {
        let index = |number: i64| usize::try_from(number - 1).ok();
        let (Some(line), Some(column)) = (index(line), index(column)) else {
            return String::new();
        };
        let Some(line) = self.code.lines().nth(line) else {
            return String::new();
        };
        let skipped = column.saturating_sub(EXCERPT_MARGIN);
        let shown: String = line.chars().skip(skipped).take(2 * EXCERPT_MARGIN).collect();
        let indent = shown.chars().count() - shown.trim_start().chars().count();
        let mark = (column - skipped).saturating_sub(indent);
        format!("\n    {}\n    {:mark$}^", shown.trim(), "")
    }
}

/// Refuses every import, static and dynamic.
pub(super) struct NoImports;

impl ModuleLoader for NoImports {
    fn resolve(&self, specifier: &str, referrer: &str, kind: ResolutionKind) -> ModuleResolveResponse {
        match kind {
            ResolutionKind::MainModule => deno_core::resolve_import(specifier, referrer).map_err(JsErrorBox::from_err),
            _ => Err(refused(specifier)),
        }
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
    JsErrorBox::type_error(format!(
        "cannot import {specifier:?}: a function is one file; bundle what it imports into it"
    ))
}
