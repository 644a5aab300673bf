//! Loading a function into an isolate: as a classic script, or as a module when its syntax says so.

use deno_core::error::{CoreError, CoreErrorKind, JsError};
use deno_core::v8;

use super::{Handler, Isolate, property};
use crate::engine::LoadError;
use crate::v8::loader::SourceFile;

impl Isolate {
    /// Runs the source as a classic script.
    ///
    /// # Errors
    /// [`ScriptError::IsModule`] when it can only be a module.
    pub(in crate::v8) fn load_script(&mut self, file: &SourceFile) -> Result<(), ScriptError> {
        deno_core::scope!(scope, self.js);
        v8::tc_scope!(let scope, scope);
        let too_long = || LoadError::InvalidArtifact("the source is too long for V8".into());
        let source =
            v8::String::new_from_utf8(scope, file.code.as_bytes(), v8::NewStringType::Normal).ok_or_else(too_long)?;
        let name = v8::String::new(scope, file.url.as_str()).ok_or_else(too_long)?;
        let origin = v8::ScriptOrigin::new(scope, name.into(), 0, 0, false, 0, None, false, false, false, None);
        let Some(script) = v8::Script::compile(scope, source, Some(&origin)) else {
            let error = scope
                .exception()
                .map(|thrown| *JsError::from_v8_exception(scope, thrown));
            return Err(match error {
                Some(error) if is_module_syntax(&error) => ScriptError::IsModule,
                Some(error) => LoadError::Syntax(describe(&error, file)).into(),
                None => ScriptError::Terminated,
            });
        };
        let Some(value) = script.run(scope) else {
            if scope.has_terminated() || scope.is_execution_terminating() {
                return Err(ScriptError::Terminated);
            }
            let error = scope
                .exception()
                .map(|thrown| *JsError::from_v8_exception(scope, thrown));
            return Err(error.map_or(ScriptError::Terminated, |error| {
                LoadError::Threw(describe(&error, file)).into()
            }));
        };
        let Ok(function) = v8::Local::<v8::Function>::try_from(value) else {
            let found = value.type_of(scope).to_rust_string_lossy(scope);
            return Err(LoadError::NoFunction(format!(
                "the script's last value is {found}, expected a function (subject, payload) => result; \
                 a module must have a default export"
            ))
            .into());
        };
        self.handler = Some(Handler::Classic(v8::Global::new(scope, function)));
        Ok(())
    }

    /// Starts loading and evaluating the source as a module; [`take_default_export`](Self::take_default_export)
    /// follows when [`poll`](Self::poll) and the returned future say that evaluation has ended.
    pub(in crate::v8) async fn load_module(&mut self, file: &SourceFile) -> Result<deno_core::ModuleId, LoadError> {
        self.js
            .load_main_es_module_from_code(&file.url, file.code.clone())
            .await
            .map_err(|error| LoadError::Syntax(describe_core(&error, file)))
    }

    pub(in crate::v8) fn evaluate_module<'f>(
        &mut self,
        id: deno_core::ModuleId,
        file: &'f SourceFile,
    ) -> impl Future<Output = Result<(), LoadError>> + use<'f> {
        let evaluation = self.js.mod_evaluate(id);
        async move {
            evaluation
                .await
                .map_err(|error| LoadError::Threw(describe_core(&error, file)))
        }
    }

    /// Finds the handler of an evaluated module.
    ///
    /// # Errors
    /// What the module threw, which evaluation does not tell, or what is wrong with its default export.
    pub(in crate::v8) fn take_default_export(
        &mut self,
        id: deno_core::ModuleId,
        file: &SourceFile,
    ) -> Result<(), LoadError> {
        let namespace = self
            .js
            .get_module_namespace(id)
            .map_err(|error| LoadError::Threw(describe_core(&error, file)))?;
        deno_core::scope!(scope, self.js);
        v8::tc_scope!(let scope, scope);
        let namespace = v8::Local::new(scope, namespace);
        let default = property(scope, namespace, "default").filter(|value| !value.is_undefined());
        let Some(default) = default else {
            return Err(LoadError::NoFunction("the module has no default export".into()));
        };
        let handler = if let Ok(function) = v8::Local::<v8::Function>::try_from(default) {
            let receiver: v8::Local<'_, v8::Value> = v8::undefined(scope).into();
            (function, receiver)
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
        self.handler = Some(Handler::Module {
            function: v8::Global::new(scope, handler.0),
            receiver: v8::Global::new(scope, handler.1),
        });
        Ok(())
    }
}

/// Why a source did not run as a classic script.
pub(in crate::v8) enum ScriptError {
    /// It uses the syntax of modules.
    IsModule,
    /// It was terminated.
    Terminated,
    /// It does not compile, threw, or gave no function.
    Failed(LoadError),
}

impl From<LoadError> for ScriptError {
    fn from(error: LoadError) -> Self {
        Self::Failed(error)
    }
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

fn describe_core(error: &CoreError, file: &SourceFile) -> String {
    match error.as_kind() {
        CoreErrorKind::Js(error) => describe(error, file),
        error => error.to_string(),
    }
}

/// The error, the line of the source it points at with a mark below the place, and its stack. deno_core's frames are only
/// the place where it was thrown: the stack is ours.
fn describe(error: &JsError, file: &SourceFile) -> String {
    let message = &error.exception_message;
    let mut text = message.strip_prefix("Uncaught ").unwrap_or(message).to_owned();
    let stack = error.stack.as_deref().unwrap_or_default();
    let stack: String = stack
        .lines()
        .filter(|line| line.starts_with("    at "))
        .map(|line| format!("\n{line}"))
        .collect();
    if let Some(frame) = error.frames.first()
        && let (Some(name), Some(line), Some(column)) = (&frame.file_name, frame.line_number, frame.column_number)
    {
        if name == file.url.as_str() {
            text.push_str(&file.excerpt(line, column));
        }
        if stack.is_empty() {
            text.push_str(&format!("\n    at {name}:{line}:{column}"));
        }
    }
    text + &stack
}
