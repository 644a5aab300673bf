//! `import.meta` of functions in module form: what deno_core gives its own modules, which a function is not.

use deno_core::{ModuleSpecifier, register_external_module_import_meta_cb, v8};

use crate::v8::loader::refusal;

/// URL of the module of an isolate, kept in the isolate.
struct ModuleUrl(ModuleSpecifier);

/// Says what `import.meta` is to hold.
pub(super) fn set_url(scope: &mut v8::PinScope<'_, '_>, url: &ModuleSpecifier) {
    scope.set_slot(ModuleUrl(url.clone()));
    register_external_module_import_meta_cb(scope, fill);
}

/// V8 calls this when a module uses `import.meta` for the first time.
fn fill<'s>(scope: &mut v8::PinScope<'s, '_>, _module: v8::Local<'_, v8::Module>, meta: v8::Local<'_, v8::Object>) {
    // Only the lack of memory could stop this, and there is no one to tell.
    _ = try_fill(scope, meta);
}

fn try_fill<'s>(scope: &mut v8::PinScope<'s, '_>, meta: v8::Local<'_, v8::Object>) -> Option<()> {
    let url = scope.get_slot::<ModuleUrl>()?.0.clone();
    let path = url.to_file_path().ok()?;
    let directory = path.parent()?;
    let text = |scope: &mut v8::PinScope<'s, '_>, text: &str| Some(v8::String::new(scope, text)?.into());
    let properties: [(&str, v8::Local<'s, v8::Value>); 5] = [
        ("url", text(scope, url.as_str())?),
        ("main", v8::Boolean::new(scope, true).into()),
        ("resolve", v8::Function::builder(resolve).build(scope)?.into()),
        ("filename", text(scope, &path.to_string_lossy())?),
        ("dirname", text(scope, &directory.to_string_lossy())?),
    ];
    for (name, value) in properties {
        let name = v8::String::new(scope, name)?;
        meta.create_data_property(scope, name.into(), value)?;
    }
    Some(())
}

/// `import.meta.resolve(specifier)`
fn resolve(
    scope: &mut v8::PinScope<'_, '_>,
    arguments: v8::FunctionCallbackArguments<'_>,
    _result: v8::ReturnValue<'_>,
) {
    let specifier = match arguments.length() {
        0 | 1 => arguments.get(0).to_string(scope),
        _ => None,
    };
    let text = match specifier {
        Some(specifier) => refusal(&specifier.to_rust_string_lossy(scope)),
        None => "Invalid arguments".to_owned(),
    };
    if let Some(text) = v8::String::new(scope, &text) {
        let error = v8::Exception::type_error(scope, text);
        scope.throw_exception(error);
    }
}
