//! One isolate: a deno_core runtime from our snapshot, with the host's traces taken off its global, and at most one
//! function loaded into it. Lives and dies on its thread; knows nothing of queues or deadlines.

use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use deno_core::error::{CoreError, CoreErrorKind, JsError};
use deno_core::{JsRuntime, PollEventLoopOptions, RuntimeOptions, serde_v8, v8};

use super::convert;
use super::loader::{NoImports, SourceFile};
use super::ops::{OpHost, nex};
use crate::engine::{FunctionSpec, LoadError};
use crate::invocation::{ErrorKind, InvokeError, Reply, Trigger};

static STARTUP_SNAPSHOT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/startup_snapshot.bin"));

pub(super) struct Isolate {
    // Declared before `js`: handles must be gone when the isolate is dropped.
    context: v8::Global<v8::Context>,
    api: Api,
    handler: Option<Handler>,
    host: Option<Rc<dyn OpHost>>,
    js: JsRuntime,
}

/// The functions that the bootstrap JavaScript leaves for the engine.
struct Api {
    abort: v8::Global<v8::Function>,
    call_message: v8::Global<v8::Function>,
    finish: v8::Global<v8::Function>,
    assign: v8::Global<v8::Function>,
}

/// What triggers call.
enum Handler {
    /// `(subject, payload) => result`
    Classic(v8::Global<v8::Function>),
    /// `(msg, env, ctx) => result`, and the object it is a method of.
    Module {
        function: v8::Global<v8::Function>,
        receiver: v8::Global<v8::Value>,
    },
}

impl Isolate {
    /// A blank isolate with at most `heap_bytes` of JavaScript heap. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the snapshot does not fit this binary, which a build cannot produce.
    pub(super) fn new(heap_bytes: usize) -> Result<Self, CoreError> {
        let mut js = JsRuntime::try_new(RuntimeOptions {
            startup_snapshot: Some(STARTUP_SNAPSHOT),
            extensions: vec![nex::init()],
            skip_op_registration: true,
            module_loader: Some(Rc::new(NoImports)),
            create_params: Some(v8::CreateParams::default().heap_limits(0, heap_bytes)),
            ..Default::default()
        })?;
        js.v8_isolate().set_allow_atomics_wait(false);
        let context = js.main_context();
        let api = {
            deno_core::scope!(scope, js);
            Api::take(scope).ok_or_else(|| CoreErrorKind::MissingFromModuleMap("__nex".into()).into_box())?
        };
        Ok(Self {
            context,
            api,
            handler: None,
            host: None,
            js,
        })
    }

    pub(super) fn handle(&mut self) -> v8::IsolateHandle {
        self.js.v8_isolate().thread_safe_handle()
    }

    /// Gives the isolate to a function for the rest of its life.
    pub(super) fn assign(&mut self, host: Rc<dyn OpHost>, spec: &FunctionSpec) -> Result<(), LoadError> {
        self.js.op_state().borrow_mut().put(Rc::clone(&host));
        self.host = Some(host);
        deno_core::scope!(scope, self.js);
        let arguments = serde_v8::to_v8(scope, &spec.id).and_then(|id| Ok([id, serde_v8::to_v8(scope, &spec.vars)?]));
        let arguments = arguments.map_err(|error| LoadError::Engine(error.to_string()))?;
        let receiver = v8::undefined(scope).into();
        v8::Local::new(scope, &self.api.assign)
            .call(scope, receiver, &arguments)
            .map(drop)
            .ok_or_else(|| LoadError::Engine("the environment could not be set".into()))
    }

    /// Calls `callback(current, initial) -> new limit` when the heap limit is near.
    pub(super) fn on_heap_limit(&mut self, callback: impl FnMut(usize, usize) -> usize + 'static) {
        self.js.add_near_heap_limit_callback(callback);
    }

    /// Runs the source as a classic script.
    ///
    /// # Errors
    /// [`ScriptError::IsModule`] when it can only be a module.
    pub(super) fn load_script(&mut self, file: &SourceFile) -> Result<(), ScriptError> {
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
    pub(super) async fn load_module(&mut self, file: &SourceFile) -> Result<deno_core::ModuleId, LoadError> {
        self.js
            .load_main_es_module_from_code(&file.url, file.code.clone())
            .await
            .map_err(|error| LoadError::Syntax(describe_core(&error, file)))
    }

    pub(super) fn evaluate_module<'f>(
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
    pub(super) fn take_default_export(&mut self, id: deno_core::ModuleId) -> Result<(), LoadError> {
        let namespace = self
            .js
            .get_module_namespace(id)
            .map_err(|error| LoadError::Engine(error.to_string()))?;
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

    /// Calls the function. Its result, or the exception, goes to the [`OpHost`], now or when its promise is settled.
    ///
    /// `key` names the invocation towards the host.
    pub(super) fn call(&mut self, key: u32, deadline: Instant, trigger: &Trigger) {
        let Some(host) = self.host.clone() else { return };
        v8::scope_with_context!(scope, self.js.v8_isolate(), &self.context);
        v8::tc_scope!(let scope, scope);
        let result = self
            .handler
            .as_ref()
            .and_then(|handler| handler.call(scope, &self.api, key, deadline, trigger));
        let plain = result.and_then(|value| convert::plain_body(scope, value));
        let settled = match (result, plain) {
            (_, Some(body)) => {
                host.finish(key, Ok(Reply::from(body)));
                Some(())
            }
            (Some(value), None) => {
                let key = v8::Integer::new_from_unsigned(scope, key).into();
                let receiver = v8::undefined(scope).into();
                v8::Local::new(scope, &self.api.finish)
                    .call(scope, receiver, &[key, value])
                    .map(drop)
            }
            (None, None) => None,
        };
        if settled.is_none() && !scope.has_terminated() {
            let error = match scope.exception() {
                Some(thrown) => convert::exception(scope, thrown),
                None => InvokeError::new(ErrorKind::Exception, "the call gave neither a value nor an exception"),
            };
            host.finish(key, Err(error));
        }
        scope.reset();
        scope.perform_microtask_checkpoint();
    }

    /// Aborts `ctx.signal` of an invocation whose time is up.
    pub(super) fn abort(&mut self, key: u32, message: &str) {
        v8::scope_with_context!(scope, self.js.v8_isolate(), &self.context);
        v8::tc_scope!(let scope, scope);
        let key = v8::Integer::new_from_unsigned(scope, key).into();
        let Some(message) = v8::String::new(scope, message) else {
            return;
        };
        let receiver = v8::undefined(scope).into();
        v8::Local::new(scope, &self.api.abort).call(scope, receiver, &[key, message.into()]);
    }

    /// Runs what is ready: finished host calls, timers, promise jobs. `Ready` when nothing is pending any more, or with
    /// an error that no code caught.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), InvokeError>> {
        self.js
            .poll_event_loop(cx, PollEventLoopOptions::default())
            .map_err(|error| match error.into_kind() {
                CoreErrorKind::Js(error) => convert::js_error(*error),
                error => InvokeError::new(ErrorKind::Exception, error.to_string()),
            })
    }
}

impl Drop for Isolate {
    fn drop(&mut self) {
        // A terminated isolate must be able to run its own clean-up.
        self.js.v8_isolate().cancel_terminate_execution();
    }
}

impl Handler {
    fn call<'s>(
        &self,
        scope: &mut v8::PinScope<'s, '_>,
        api: &Api,
        key: u32,
        deadline: Instant,
        trigger: &Trigger,
    ) -> Option<v8::Local<'s, v8::Value>> {
        let subject = v8::String::new(scope, &trigger.subject)?.into();
        let payload = convert::to_uint8_array(scope, &trigger.payload)?.into();
        match self {
            Self::Classic(function) => {
                let receiver = scope.get_current_context().global(scope).into();
                v8::Local::new(scope, function).call(scope, receiver, &[subject, payload])
            }
            Self::Module { function, receiver } => {
                let undefined: v8::Local<'_, v8::Value> = v8::undefined(scope).into();
                let reply = match &trigger.reply {
                    Some(reply) => v8::String::new(scope, reply)?.into(),
                    None => undefined,
                };
                let headers = if trigger.headers.is_empty() {
                    undefined
                } else {
                    serde_v8::to_v8(scope, &trigger.headers).ok()?
                };
                let arguments = [
                    v8::Local::new(scope, function).into(),
                    v8::Local::new(scope, receiver),
                    v8::Integer::new_from_unsigned(scope, key).into(),
                    v8::Number::new(scope, epoch_milliseconds(deadline)).into(),
                    subject,
                    reply,
                    headers,
                    payload,
                ];
                v8::Local::new(scope, &api.call_message).call(scope, undefined, &arguments)
            }
        }
    }
}

impl Api {
    /// Takes the functions and then everything of the host off the global.
    fn take(scope: &mut v8::PinScope<'_, '_>) -> Option<Self> {
        let global = scope.get_current_context().global(scope);
        let nex = property(scope, global, "__nex")?.to_object(scope)?;
        let mut function = |name| {
            let function = property(scope, nex, name)?;
            Some(v8::Global::new(
                scope,
                v8::Local::<v8::Function>::try_from(function).ok()?,
            ))
        };
        let api = Self {
            abort: function("abort")?,
            call_message: function("callMessage")?,
            finish: function("finish")?,
            assign: function("assign")?,
        };
        let scrub = function("scrub")?;
        let receiver = v8::undefined(scope).into();
        v8::Local::new(scope, scrub).call(scope, receiver, &[])?;
        Some(api)
    }
}

fn property<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    object: v8::Local<'s, v8::Object>,
    name: &str,
) -> Option<v8::Local<'s, v8::Value>> {
    let name = v8::String::new(scope, name)?;
    object.get(scope, name.into())
}

/// Why a source did not run as a classic script.
pub(super) enum ScriptError {
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

/// The error, the line of the source it points at with a mark below the place, and its stack.
fn describe(error: &JsError, file: &SourceFile) -> String {
    let message = &error.exception_message;
    let mut text = message.strip_prefix("Uncaught ").unwrap_or(message).to_owned();
    for (index, frame) in error.frames.iter().enumerate() {
        let (Some(name), Some(line), Some(column)) = (&frame.file_name, frame.line_number, frame.column_number) else {
            continue;
        };
        if index == 0 && name == file.url.as_str() {
            text.push_str(&file.excerpt(line, column));
        }
        text.push_str(&format!("\n    at {name}:{line}:{column}"));
    }
    text
}

/// The deadline in milliseconds since 1970, as JavaScript counts time.
fn epoch_milliseconds(deadline: Instant) -> f64 {
    let left = deadline.saturating_duration_since(Instant::now());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    ((now + left).as_secs_f64() * 1000.0).round()
}
