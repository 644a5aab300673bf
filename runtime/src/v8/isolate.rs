//! One isolate: a deno_core runtime from our snapshot, with the host's traces taken off its global, and at most one
//! function loaded into it. Lives and dies on its thread; knows nothing of queues or deadlines.

mod call;
mod code;
mod import_meta;
mod load;
mod poll;
mod warm_up;

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use deno_core::error::{CoreError, CoreErrorKind};
use deno_core::{JsRuntime, RuntimeOptions, serde_v8, v8};

use super::buffers::{Account, MemoryOwner};
use super::chance;
use super::heap::{self, IsolateParams};
use super::loader::NoImports;
use super::ops::{OpHost, Pending, nex};
use super::rejections::Rejections;
use super::remains::Remains;
use super::{lookup_caches, stack, stack_trace, stub_caches};
use crate::engine::{FunctionSpec, LoadError};

use self::call::LastSubject;
use self::code::Code;
use self::load::Evaluation;
pub(super) use self::load::{LoadFailure, Loaded};

pub(super) static STARTUP_SNAPSHOT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/startup_snapshot.bin"));

pub(super) struct Isolate {
    // Declared before `js`: handles must be gone when the isolate is dropped.
    context: v8::Global<v8::Context>,
    api: Api,
    handler: Option<Handler>,
    subject: LastSubject,
    code: Option<Code>,
    evaluation: Option<Evaluation>,
    host: Option<Rc<dyn OpHost>>,
    pending: Rc<Pending>,
    /// Promises that invocations wait for.
    awaited: Vec<(u32, v8::Global<v8::Promise>)>,
    params: IsolateParams,
    account: Arc<Account>,
    rejections: Rc<Rejections>,
    js: JsRuntime,
    // Declared after `js`: its strings are in here.
    source: Bytes,
}

/// The functions that the bootstrap JavaScript leaves for the engine.
struct Api {
    abort: v8::Global<v8::Function>,
    call_message: v8::Global<v8::Function>,
    finish: v8::Global<v8::Function>,
    log_rejection: v8::Global<v8::Function>,
    settle_host_call: v8::Global<v8::Function>,
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
    /// A blank isolate. Must be called inside a tokio runtime, on a thread with the stack that `params` asks for.
    ///
    /// # Errors
    /// When the snapshot does not fit this binary, which a build cannot produce.
    pub(super) fn new(params: IsolateParams) -> Result<Self, CoreError> {
        let account = Account::open();
        let create_params = params.create_params().array_buffer_allocator(account.allocator());
        let mut js = JsRuntime::try_new(RuntimeOptions {
            startup_snapshot: Some(STARTUP_SNAPSHOT),
            extensions: vec![nex::init()],
            skip_op_registration: true,
            module_loader: Some(Rc::new(NoImports)),
            create_params: Some(create_params),
            ..Default::default()
        })?;
        js.v8_isolate().set_allow_atomics_wait(false);
        js.v8_isolate().set_prepare_stack_trace_callback(stack_trace::prepare);
        let rejections = Rejections::hook(js.v8_isolate());
        let context = js.main_context();
        let api = {
            deno_core::scope!(scope, js);
            Api::take(scope).ok_or_else(|| CoreErrorKind::MissingFromModuleMap("__nex".into()).into_box())?
        };
        Ok(Self {
            context,
            api,
            handler: None,
            subject: LastSubject::default(),
            code: None,
            evaluation: None,
            host: None,
            pending: js.op_state().borrow().borrow::<Rc<Pending>>().clone(),
            awaited: Vec::new(),
            params,
            account,
            rejections,
            js,
            source: Bytes::new(),
        })
    }

    /// The isolate after it has done once what starts and first calls do, so that no start has to do it first.
    ///
    /// # Errors
    /// When V8 throws, which our own code gives it no reason to.
    pub(super) fn warmed_up(mut self) -> Result<Self, CoreError> {
        let warm = {
            deno_core::scope!(scope, self.js);
            warm_up::run(scope, &self.api).is_some()
        };
        match warm {
            true => Ok(self),
            false => Err(CoreErrorKind::MissingFromModuleMap("__nex".into()).into_box()),
        }
    }

    /// Collects all garbage and gives back what an idle isolate does not need, in some 3 ms: nobody is waiting for it.
    pub(super) fn tidy(&mut self) {
        self.js.v8_isolate().low_memory_notification();
        stub_caches::give_back(self.address());
        lookup_caches::give_back(self.address());
        stack::give_back();
    }

    /// What is to be freed when this has been dropped.
    pub(super) fn remains(&mut self) -> Option<Remains> {
        Remains::find(self.address(), &self.context)
    }

    /// Where V8 has it.
    #[allow(unsafe_code, reason = "the bindings give no address")]
    fn address(&mut self) -> usize {
        // SAFETY: a transparent wrapper of a pointer, of which only the address is used.
        unsafe { std::mem::transmute(self.js.v8_isolate().as_raw_isolate_ptr()) }
    }

    pub(super) fn handle(&mut self) -> v8::IsolateHandle {
        self.js.v8_isolate().thread_safe_handle()
    }

    /// Gives the isolate to a function for the rest of its life. Its memory limits hold from now on, and `owner` is told
    /// when they are hit.
    pub(super) fn assign(
        &mut self,
        host: Rc<dyn OpHost>,
        owner: Arc<dyn MemoryOwner>,
        spec: &FunctionSpec,
    ) -> Result<(), LoadError> {
        self.account.assign(&spec.limits, owner);
        chance::reseed(self.js.v8_isolate())
            .map_err(|error| LoadError::Engine(format!("no random numbers: {error}")))?;
        heap::guard(&mut self.js, self.params, &spec.limits, &self.account);
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
}

impl Drop for Isolate {
    fn drop(&mut self) {
        // A terminated isolate must be able to run its own clean-up.
        self.js.v8_isolate().cancel_terminate_execution();
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
            log_rejection: function("logRejection")?,
            settle_host_call: function("settleHostCall")?,
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
