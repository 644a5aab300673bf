//! Between JavaScript values and the engine's types: payloads in, reply bodies out, exceptions to typed errors.

use bytes::Bytes;
use deno_core::error::JsError;
use deno_core::v8;

use super::buffers;
use crate::invocation::{ErrorKind, InvokeError};

/// A `Uint8Array` over a copy of the bytes, which belongs to the function.
pub(crate) fn to_uint8_array<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    bytes: &[u8],
) -> Option<v8::Local<'s, v8::Uint8Array>> {
    let buffer = if bytes.is_empty() {
        v8::ArrayBuffer::new(scope, 0)
    } else {
        let store = buffers::backing_store(bytes.to_vec()).make_shared();
        v8::ArrayBuffer::with_backing_store(scope, &store)
    };
    v8::Uint8Array::new(scope, buffer, 0, bytes.len())
}

/// The bytes of a value that needs no conversion by the reply rules: `undefined`, a string, a `Uint8Array` or an
/// `ArrayBuffer`. `None` for everything else.
pub(crate) fn plain_body<'s>(scope: &mut v8::PinScope<'s, '_>, value: v8::Local<'s, v8::Value>) -> Option<Bytes> {
    if let Ok(array) = v8::Local::<v8::Uint8Array>::try_from(value) {
        let mut bytes = vec![0; array.byte_length()];
        let copied = array.copy_contents(&mut bytes);
        bytes.truncate(copied);
        return Some(bytes.into());
    }
    if let Ok(string) = v8::Local::<v8::String>::try_from(value) {
        return Some(string.to_rust_string_lossy(scope).into());
    }
    if value.is_undefined() {
        return Some(Bytes::new());
    }
    let buffer = v8::Local::<v8::ArrayBuffer>::try_from(value).ok()?;
    let view = v8::Uint8Array::new(scope, buffer, 0, buffer.byte_length())?;
    plain_body(scope, view.into())
}

/// The error for a thrown value; any JavaScript value can be thrown.
pub(crate) fn exception<'s>(scope: &mut v8::PinScope<'s, '_>, thrown: v8::Local<'s, v8::Value>) -> InvokeError {
    js_error(*JsError::from_v8_exception(scope, thrown))
}

/// The error for an exception that deno_core has taken apart.
pub(crate) fn js_error(error: JsError) -> InvokeError {
    let message = error
        .exception_message
        .strip_prefix("Uncaught ")
        .unwrap_or(&error.exception_message);
    let message = one_line(message.strip_prefix("(in promise) ").unwrap_or(message));
    let kind = match error.name.as_deref() {
        Some("HostServiceError") => ErrorKind::HostService,
        _ => ErrorKind::Exception,
    };
    InvokeError {
        kind,
        message,
        name: error.name,
        stack: error.stack,
    }
}

/// A text without its line breaks: it goes into a header.
fn one_line(text: &str) -> String {
    let lines: Vec<&str> = text
        .split(['\r', '\n'])
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    lines.join(" ")
}
