//! Loading a function into an isolate: as a classic script, or as a module when its syntax says so.
//!
//! Modules do not go through deno_core's module map. A function imports nothing, so there is nothing to map, and the map
//! does not give out the compiled module, without which there is no code cache.

use std::task::Poll;

use deno_core::v8;

use super::code::{Code, Compilation, Compiled};
use super::{Handler, Isolate, import_meta, property};
use crate::engine::LoadError;
use crate::v8::code_cache::CodeCache;
use crate::v8::convert;
use crate::v8::loader::{SourceFile, refusal};

/// Characters of a script's URL that are looked at: longer than any of ours.
const MAX_URL: usize = 1_000;

/// How far a function has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::v8) enum Loaded {
    /// It can be called.
    Ready,
    /// Its top level awaits something; [`Isolate::top_level`] says when it has ended.
    Awaiting,
}

/// Why a function was not loaded.
pub(in crate::v8) enum LoadFailure {
    /// Its code was terminated.
    Terminated,
    /// Its own fault.
    Error(LoadError),
}

impl From<LoadError> for LoadFailure {
    fn from(error: LoadError) -> Self {
        Self::Error(error)
    }
}

/// A module whose top level has begun.
pub(super) struct Evaluation {
    module: v8::Global<v8::Module>,
    promise: v8::Global<v8::Promise>,
}

/// A scope that catches what the function throws.
pub(super) type TryCatch<'t, 'c, 's, 'i> = v8::PinnedRef<'t, v8::TryCatch<'c, 's, v8::HandleScope<'i>>>;

impl Isolate {
    /// Compiles the source, from the cache when it is there, and runs its top level as far as it runs without waiting.
    pub(in crate::v8) fn load(&mut self, file: &SourceFile, cache: &CodeCache) -> Result<Loaded, LoadFailure> {
        let loaded = self.run_top_level(file, cache);
        self.account.end_of_run();
        loaded
    }

    fn run_top_level(&mut self, file: &SourceFile, cache: &CodeCache) -> Result<Loaded, LoadFailure> {
        let mut compilation = Compilation::new(file, cache);
        self.source = file.code().clone();
        let evaluation = {
            deno_core::scope!(scope, self.js);
            v8::tc_scope!(let scope, scope);
            let too_long = || LoadError::InvalidArtifact("the source is too long for V8".into());
            let source = source_string(scope, &self.source, file.is_ascii()).ok_or_else(too_long)?;
            let name = v8::String::new(scope, file.url.as_str()).ok_or_else(too_long)?;
            let Some(compiled) = compilation.compile(scope, source, name) else {
                return Err(failure(scope, file, LoadError::Syntax));
            };
            self.code = Some(Code::new(scope, &compiled, compilation.calls()));
            match compiled {
                Compiled::Script(script) => {
                    self.handler = Some(run_script(scope, script, file)?);
                    return Ok(Loaded::Ready);
                }
                Compiled::Module(module) => evaluate(scope, module, file)?,
            }
        };
        self.evaluation = Some(evaluation);
        match self.top_level(file) {
            Poll::Pending => Ok(Loaded::Awaiting),
            Poll::Ready(result) => result.map(|()| Loaded::Ready),
        }
    }

    /// Whether the top level has ended; nothing but [`poll`](Self::poll) brings it forward.
    pub(in crate::v8) fn top_level(&mut self, file: &SourceFile) -> Poll<Result<(), LoadFailure>> {
        let Some(evaluation) = &self.evaluation else {
            return Poll::Ready(Ok(()));
        };
        deno_core::scope!(scope, self.js);
        v8::tc_scope!(let scope, scope);
        let promise = v8::Local::new(scope, &evaluation.promise);
        match promise.state() {
            v8::PromiseState::Pending => return Poll::Pending,
            v8::PromiseState::Rejected => {
                let reason = promise.result(scope);
                return Poll::Ready(Err(LoadError::Threw(describe(scope, reason, file)).into()));
            }
            v8::PromiseState::Fulfilled => {}
        }
        let module = v8::Local::new(scope, &evaluation.module);
        self.evaluation = None;
        let handler = default_export(scope, module);
        Poll::Ready(handler.map(|handler| self.handler = Some(handler)).map_err(Into::into))
    }

    /// The error for a top level that awaits while nothing is pending, and where it awaits.
    pub(in crate::v8) fn stalled(&mut self, file: &SourceFile) -> LoadError {
        let mut text = "the module's top level awaits a promise that can never settle: \
                        no host call, timer or promise is left that could settle it"
            .to_owned();
        if let Some(evaluation) = &self.evaluation {
            deno_core::scope!(scope, self.js);
            let module = v8::Local::new(scope, &evaluation.module);
            for (_, message) in module.get_stalled_top_level_await_message(scope) {
                let line = message.get_line_number(scope).and_then(|line| i64::try_from(line).ok());
                let column = i64::try_from(message.get_start_column() + 1).ok();
                if let (Some(line), Some(column)) = (line, column) {
                    push_place(&mut text, file, line, column);
                }
            }
        }
        LoadError::Threw(text)
    }
}

/// Shows a place in the source.
fn push_place(text: &mut String, file: &SourceFile, line: i64, column: i64) {
    text.push_str(&file.excerpt(line, column));
    text.push_str(&format!("\n    at {}:{line}:{column}", file.url));
}

/// The source for V8. ASCII is not copied.
fn source_string<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    source: &bytes::Bytes,
    is_ascii: bool,
) -> Option<v8::Local<'s, v8::String>> {
    if !is_ascii {
        return v8::String::new_from_utf8(scope, source, v8::NewStringType::Normal);
    }
    /// The bytes belong to the [`Isolate`].
    extern "C" fn keep(_: *mut std::ffi::c_char, _: usize) {}
    // SAFETY: one-byte strings may hold ASCII. V8 only reads the bytes. They live as long as `Isolate::source`, which is
    // set once, before this, and dropped after the V8 isolate with all its strings.
    #[allow(unsafe_code, reason = "V8 is to use the source in place")]
    unsafe {
        v8::String::new_external_onebyte_raw(scope, source.as_ptr().cast_mut().cast(), source.len(), keep)
    }
}

/// Runs a classic script, whose last value is the function.
fn run_script<'s>(
    scope: &mut TryCatch<'_, '_, 's, '_>,
    script: v8::Local<'s, v8::Script>,
    file: &SourceFile,
) -> Result<Handler, LoadFailure> {
    let Some(value) = script.run(scope) else {
        return Err(failure(scope, file, LoadError::Threw));
    };
    // Promise jobs of the top level are part of it: endless ones must not wait for the first call.
    scope.perform_microtask_checkpoint();
    let Ok(function) = v8::Local::<v8::Function>::try_from(value) else {
        let found = value.type_of(scope).to_rust_string_lossy(scope);
        return Err(LoadError::NoFunction(format!(
            "the script's last value is {found}, expected a function (subject, payload) => result; \
             a module must have a default export"
        ))
        .into());
    };
    Ok(Handler::Classic(v8::Global::new(scope, function)))
}

/// Begins to run a module's top level.
fn evaluate<'s>(
    scope: &mut TryCatch<'_, '_, 's, '_>,
    module: v8::Local<'s, v8::Module>,
    file: &SourceFile,
) -> Result<Evaluation, LoadFailure> {
    if let Some(error) = refuse_imports(scope, module, file) {
        return Err(error.into());
    }
    import_meta::set_url(scope, &file.url);
    if module.instantiate_module(scope, resolve_nothing).is_none() {
        return Err(failure(scope, file, LoadError::Syntax));
    }
    let promise = module
        .evaluate(scope)
        .and_then(|value| v8::Local::<v8::Promise>::try_from(value).ok());
    let Some(promise) = promise else {
        return Err(failure(scope, file, LoadError::Threw));
    };
    // Its rejection is reported from here, not as one that nobody handles.
    promise.mark_as_handled();
    scope.perform_microtask_checkpoint();
    if scope.has_terminated() || scope.is_execution_terminating() {
        return Err(LoadFailure::Terminated);
    }
    Ok(Evaluation {
        module: v8::Global::new(scope, module),
        promise: v8::Global::new(scope, promise),
    })
}

/// Never called: modules with imports do not come so far.
#[allow(clippy::unnecessary_wraps, reason = "the signature is V8's")]
pub(super) fn resolve_nothing<'s>(
    _context: v8::Local<'s, v8::Context>,
    _specifier: v8::Local<'s, v8::String>,
    _attributes: v8::Local<'s, v8::FixedArray>,
    _referrer: v8::Local<'s, v8::Module>,
) -> Option<v8::Local<'s, v8::Module>> {
    None
}

/// The error for the first import of a module, and where it is.
fn refuse_imports<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    module: v8::Local<'s, v8::Module>,
    file: &SourceFile,
) -> Option<LoadError> {
    let request = module.get_module_requests().get(scope, 0)?;
    let request = v8::Local::<v8::ModuleRequest>::try_from(request).ok()?;
    let mut text = refusal(&request.get_specifier().to_rust_string_lossy(scope));
    let place = module.source_offset_to_location(request.get_source_offset());
    let (line, column) = (place.get_line_number() + 1, place.get_column_number() + 1);
    push_place(&mut text, file, line.into(), column.into());
    Some(LoadError::Syntax(text))
}

/// Finds the handler of a module whose top level has ended.
fn default_export<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    module: v8::Local<'s, v8::Module>,
) -> Result<Handler, LoadError> {
    let default = v8::Local::<v8::Object>::try_from(module.get_module_namespace())
        .ok()
        .and_then(|namespace| property(scope, namespace, "default"))
        .filter(|value| !value.is_undefined())
        .ok_or_else(|| LoadError::NoFunction("the module has no default export".into()))?;
    let (function, receiver) = if let Ok(function) = v8::Local::<v8::Function>::try_from(default) {
        (function, v8::undefined(scope).into())
    } else {
        let method = v8::Local::<v8::Object>::try_from(default)
            .ok()
            .and_then(|object| property(scope, object, "message"))
            .and_then(|method| v8::Local::<v8::Function>::try_from(method).ok());
        let Some(method) = method else {
            return Err(LoadError::NoFunction(
                "the default export is neither a function (msg, env, ctx) => result \
                 nor an object with a method message(msg, env, ctx)"
                    .into(),
            ));
        };
        (method, default)
    };
    Ok(Handler::Module {
        function: v8::Global::new(scope, function),
        receiver: v8::Global::new(scope, receiver),
    })
}

/// What V8 has given in place of a value: an exception, or nothing because the code was terminated.
fn failure(scope: &mut TryCatch<'_, '_, '_, '_>, file: &SourceFile, class: fn(String) -> LoadError) -> LoadFailure {
    if scope.has_terminated() || scope.is_execution_terminating() {
        return LoadFailure::Terminated;
    }
    let Some(thrown) = scope.exception() else {
        return LoadFailure::Terminated;
    };
    class(describe(scope, thrown, file)).into()
}

/// The error, the line of the source it points at with a mark below the place, and its stack.
fn describe<'s>(scope: &mut v8::PinScope<'s, '_>, thrown: v8::Local<'s, v8::Value>, file: &SourceFile) -> String {
    // First the place: V8 knows it no longer once the stack has been written.
    let message = v8::Exception::create_message(scope, thrown);
    let line = message.get_line_number(scope).and_then(|line| i64::try_from(line).ok());
    let column = message.get_start_column().checked_add(1);
    let column = column.and_then(|column| i64::try_from(column).ok());
    let name = message
        .get_script_resource_name(scope)
        .and_then(|name| v8::Local::<v8::String>::try_from(name).ok())
        .map(|name| convert::head(scope, name, MAX_URL).text);
    let error = convert::exception(scope, thrown);
    let mut text = error.message;
    let stack = error.stack.unwrap_or_default();
    let stack: Vec<&str> = stack.lines().filter(|line| line.starts_with("    at ")).collect();
    if name.is_some_and(|name| name == file.url.as_str())
        && let (Some(line), Some(column)) = (line, column)
    {
        if stack.is_empty() {
            push_place(&mut text, file, line, column);
        } else {
            text.push_str(&file.excerpt(line, column));
        }
    }
    for frame in stack {
        text.push('\n');
        text.push_str(frame);
    }
    text
}
