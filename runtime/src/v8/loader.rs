//! Source files, and the loader that refuses imports: a function is one file.

use deno_core::{
    ModuleLoadOptions, ModuleLoadReferrer, ModuleLoadResponse, ModuleLoader, ModuleResolveResponse, ModuleSpecifier,
    ResolutionKind,
};
use deno_error::JsErrorBox;

use crate::engine::{FunctionSpec, LoadError};

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
