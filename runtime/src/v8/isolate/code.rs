//! Compiling a source, with the code cache where it has something, and giving compiled code to the cache.

use std::time::{Duration, Instant};

use deno_core::error::JsError;
use deno_core::v8;
use deno_core::v8::script_compiler::{self, CachedData, CompileOptions, NoCacheReason};

use super::Isolate;
use super::load::TryCatch;
use crate::v8::code_cache::{Cached, CodeCache, Form, renewal_after};
use crate::v8::loader::SourceFile;

/// V8 drops compiled code that was not run for 180 s. Code taken from an instance that is older would lack what only a
/// start needs.
const FRESH: Duration = Duration::from_secs(150);

/// Longest source, in UTF-16 units, that is compiled with all its functions when its code will be kept. V8 leaves those
/// that nothing has called yet for their first call, which after a cold start is what a caller waits for; of a large source
/// most are never called, and would have to be read at each start.
const EAGER: usize = 16 << 10;

/// The compiled code of the function of an isolate.
pub(super) struct Code {
    unit: Unit,
    /// Calls served, by all instances that the code came down through.
    calls: u64,
    /// Number of them from which on it is worth keeping.
    due: u64,
    /// This instance has served one.
    served: bool,
    since: Instant,
}

enum Unit {
    Script(v8::Global<v8::UnboundScript>),
    Module(v8::Global<v8::UnboundModuleScript>),
}

impl Code {
    /// `cached_calls` are those of the cached code it was made from, if it was.
    pub(super) fn new(scope: &v8::PinScope<'_, '_>, compiled: &Compiled<'_>, cached_calls: Option<u64>) -> Self {
        let unit = match compiled {
            Compiled::Script(script) => Unit::Script(v8::Global::new(scope, script.get_unbound_script(scope))),
            Compiled::Module(module) => Unit::Module(v8::Global::new(scope, module.get_unbound_module_script(scope))),
        };
        Self {
            unit,
            calls: cached_calls.unwrap_or(0),
            due: cached_calls.map_or(0, renewal_after),
            served: false,
            since: Instant::now(),
        }
    }

    /// The function has been called.
    pub(super) fn count_call(&mut self) {
        self.calls = self.calls.saturating_add(1);
        self.served = true;
    }
}

/// What V8's compiler makes of a source.
pub(super) enum Compiled<'s> {
    Script(v8::Local<'s, v8::Script>),
    Module(v8::Local<'s, v8::Module>),
}

/// A source on its way through V8's compiler.
pub(super) struct Compilation<'a> {
    file: &'a SourceFile,
    cache: &'a CodeCache,
    cached: Option<Cached>,
}

impl<'a> Compilation<'a> {
    pub(super) fn new(file: &'a SourceFile, cache: &'a CodeCache) -> Self {
        Self {
            file,
            cache,
            cached: cache.find(&file.hash),
        }
    }

    /// `None` with the exception in the scope.
    pub(super) fn compile<'s>(
        &mut self,
        scope: &mut TryCatch<'_, '_, 's, '_>,
        source: v8::Local<'s, v8::String>,
        name: v8::Local<'s, v8::String>,
    ) -> Option<Compiled<'s>> {
        let known = self.file.form().or(self.cached.as_ref().map(|cached| cached.form));
        let compiled = match known {
            Some(Form::Script) => Compiled::Script(self.script(scope, source, name)?),
            Some(Form::Module) => Compiled::Module(self.module(scope, source, name)?),
            None => self.find_out(scope, source, name)?,
        };
        self.file.remember(match compiled {
            Compiled::Script(_) => Form::Script,
            Compiled::Module(_) => Form::Module,
        });
        Some(compiled)
    }

    /// What can be a script is one, everything else a module. A source that exports something cannot be a script, so it
    /// need not be tried as one.
    fn find_out<'s>(
        &mut self,
        scope: &mut TryCatch<'_, '_, 's, '_>,
        source: v8::Local<'s, v8::String>,
        name: v8::Local<'s, v8::String>,
    ) -> Option<Compiled<'s>> {
        if self.file.looks_like_module() {
            if let Some(module) = self.module(scope, source, name)
                && exports_default(scope, module)
            {
                return Some(Compiled::Module(module));
            }
            scope.reset();
        }
        if let Some(script) = self.script(scope, source, name) {
            return Some(Compiled::Script(script));
        }
        let thrown = scope.exception()?;
        if !is_module_syntax(&JsError::from_v8_exception(scope, thrown)) {
            return None;
        }
        scope.reset();
        self.module(scope, source, name).map(Compiled::Module)
    }

    fn script<'s>(
        &mut self,
        scope: &v8::PinScope<'s, '_>,
        source: v8::Local<'s, v8::String>,
        name: v8::Local<'s, v8::String>,
    ) -> Option<v8::Local<'s, v8::Script>> {
        let origin = origin(scope, name, Form::Script);
        self.with_cached(Form::Script, source, &origin, |source, options| {
            script_compiler::compile(scope, source, options, NoCacheReason::NoReason)
        })
    }

    fn module<'s>(
        &mut self,
        scope: &v8::PinScope<'s, '_>,
        source: v8::Local<'s, v8::String>,
        name: v8::Local<'s, v8::String>,
    ) -> Option<v8::Local<'s, v8::Module>> {
        let origin = origin(scope, name, Form::Module);
        self.with_cached(Form::Module, source, &origin, |source, options| {
            script_compiler::compile_module2(scope, source, options, NoCacheReason::NoReason)
        })
    }

    fn with_cached<'s, T>(
        &mut self,
        form: Form,
        source: v8::Local<'s, v8::String>,
        origin: &v8::ScriptOrigin<'s>,
        compile: impl FnOnce(&mut script_compiler::Source, CompileOptions) -> Option<T>,
    ) -> Option<T> {
        let Some(cached) = self.cached.as_ref().filter(|cached| cached.form == form) else {
            let options = if source.length() <= EAGER && self.cache.wants(&self.file.hash, 0) {
                CompileOptions::EagerCompile
            } else {
                CompileOptions::NoCompileOptions
            };
            let mut source = script_compiler::Source::new(source, Some(origin));
            return compile(&mut source, options);
        };
        let data = CachedData::new(cached.code());
        let mut source = script_compiler::Source::new_with_cached_data(source, Some(origin), data);
        let compiled = compile(&mut source, CompileOptions::ConsumeCodeCache);
        // V8 has then compiled the source.
        if source.get_cached_data().is_none_or(|data| data.rejected()) {
            self.cache.refuse(&self.file.hash);
            self.cached = None;
        } else {
            self.cache.used();
        }
        compiled
    }

    /// Calls that the cached code in use had served when it was taken.
    pub(super) fn calls(&self) -> Option<u64> {
        self.cached.as_ref().map(|cached| cached.calls)
    }
}

fn origin<'s>(scope: &v8::PinScope<'s, '_>, name: v8::Local<'s, v8::String>, form: Form) -> v8::ScriptOrigin<'s> {
    let is_module = form == Form::Module;
    v8::ScriptOrigin::new(scope, name.into(), 0, 0, false, 0, None, false, false, is_module, None)
}

/// Whether a module has imports, or links and has a default export.
fn exports_default<'s>(scope: &mut v8::PinScope<'s, '_>, module: v8::Local<'s, v8::Module>) -> bool {
    if module.get_module_requests().length() > 0 {
        return true;
    }
    if module.instantiate_module(scope, super::load::resolve_nothing).is_none() {
        return false;
    }
    let Some(default) = v8::String::new(scope, "default") else {
        return false;
    };
    v8::Local::<v8::Object>::try_from(module.get_module_namespace())
        .ok()
        .and_then(|namespace| namespace.has(scope, default.into()))
        .unwrap_or(false)
}

/// Whether a syntax error only says that this is a module; V8's messages for that name the constructs.
fn is_module_syntax(error: &JsError) -> bool {
    let message = error.message.as_deref().unwrap_or_default();
    [
        "'export'",
        "import statement",
        "'import.meta'",
        "top level bodies of modules",
    ]
    .iter()
    .any(|construct| message.contains(construct))
}

impl Isolate {
    /// Gives the compiled code of the function to the cache, if the cache would gain by it: it has none for this source,
    /// or this has served several times as many calls. Costs next to nothing otherwise, and some milliseconds for a large
    /// source when it does: for a moment when nobody waits.
    pub(in crate::v8) fn keep_code(&mut self, file: &SourceFile, cache: &CodeCache) {
        let Some(code) = self.code.as_mut().filter(|code| code.calls >= code.due) else {
            return;
        };
        code.due = renewal_after(code.calls);
        // Old code only in place of none.
        let calls = if code.since.elapsed() < FRESH { code.calls } else { 0 };
        if !cache.wants(&file.hash, calls) {
            return;
        }
        v8::scope_with_context!(scope, self.js.v8_isolate(), &self.context);
        let (form, data) = match &code.unit {
            Unit::Script(script) => (Form::Script, v8::Local::new(scope, script).create_code_cache()),
            Unit::Module(module) => (Form::Module, v8::Local::new(scope, module).create_code_cache()),
        };
        // V8 gives none of scripts that it compiled otherwise (asm.js).
        if let Some(data) = data {
            cache.store(&file.hash, form, calls, &data);
        }
    }

    /// Whether the function has been called since it was loaded.
    pub(in crate::v8) fn has_served(&self) -> bool {
        self.code.as_ref().is_some_and(|code| code.served)
    }
}
