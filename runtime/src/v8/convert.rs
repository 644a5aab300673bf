//! Between JavaScript values and the engine's types: payloads in, reply bodies out, exceptions to typed errors. Values
//! are a function's and may be of any size: what is too large is refused or cut before it is copied.

use bytes::Bytes;
use deno_core::error::JsError;
use deno_core::v8;

use super::buffers;
use crate::invocation::{ErrorKind, InvokeError};
use crate::logs::MAX_LOG_LINE;

/// Characters of an error message; it goes into a header.
const MAX_MESSAGE: usize = 2_000;

/// A `Uint8Array` over a copy of the bytes, which belongs to the function.
pub(crate) fn to_uint8_array<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    bytes: &[u8],
) -> Option<v8::Local<'s, v8::Uint8Array>> {
    let buffer = if bytes.is_empty() {
        v8::ArrayBuffer::new(scope, 0)
    } else {
        let store = buffers::backing_store(scope, bytes).make_shared();
        v8::ArrayBuffer::with_backing_store(scope, &store)
    };
    v8::Uint8Array::new(scope, buffer, 0, bytes.len())
}

/// Something has more bytes than it may have: this many, or for text with characters beyond ASCII at least this many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooLarge(pub(crate) usize);

/// The bytes of a value that needs no conversion by the reply rules: `undefined`, a string, a `Uint8Array` or an
/// `ArrayBuffer`. `None` for everything else.
pub(crate) fn plain_body<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    value: v8::Local<'s, v8::Value>,
    limit: usize,
) -> Option<Result<Bytes, TooLarge>> {
    if value.is_undefined() {
        return Some(Ok(Bytes::new()));
    }
    if !value.is_string() && !value.is_uint8_array() && !value.is_array_buffer() {
        return None;
    }
    let length = byte_length(scope, value, limit);
    Some(if length > limit {
        Err(TooLarge(length))
    } else {
        Ok(bytes(scope, value))
    })
}

/// How many bytes [`bytes`] will give, without copying any. Text of more characters than the limit is not looked at:
/// its characters are counted, of which each has at least one byte.
pub(crate) fn byte_length<'s>(scope: &v8::PinScope<'s, '_>, value: v8::Local<'s, v8::Value>, limit: usize) -> usize {
    if let Ok(text) = v8::Local::<v8::String>::try_from(value) {
        let units = text.length();
        if units > limit { units } else { text.utf8_length(scope) }
    } else if let Ok(view) = v8::Local::<v8::ArrayBufferView>::try_from(value) {
        view.byte_length()
    } else if let Ok(buffer) = v8::Local::<v8::ArrayBuffer>::try_from(value) {
        buffer.byte_length()
    } else {
        0
    }
}

/// A copy of the bytes of a string (in UTF-8), a view or an `ArrayBuffer`; of anything else, nothing.
pub(crate) fn bytes<'s>(scope: &mut v8::PinScope<'s, '_>, value: v8::Local<'s, v8::Value>) -> Bytes {
    if let Ok(text) = v8::Local::<v8::String>::try_from(value) {
        return text.to_rust_string_lossy(scope).into();
    }
    if let Ok(view) = v8::Local::<v8::ArrayBufferView>::try_from(value) {
        let mut bytes = vec![0; view.byte_length()];
        let copied = view.copy_contents(&mut bytes);
        bytes.truncate(copied);
        return bytes.into();
    }
    let Ok(buffer) = v8::Local::<v8::ArrayBuffer>::try_from(value) else {
        return Bytes::new();
    };
    match v8::Uint8Array::new(scope, buffer, 0, buffer.byte_length()) {
        Some(view) => bytes(scope, view.into()),
        None => Bytes::new(),
    }
}

/// The beginning of a text.
pub(crate) struct Head {
    pub(crate) text: String,
    /// There was more.
    pub(crate) cut: bool,
}

/// The first `limit` characters of a string, however long it is: V8 is not made to put a composed string together.
pub(crate) fn head(scope: &v8::Isolate, string: v8::Local<'_, v8::String>, limit: usize) -> Head {
    // A character takes at most two units.
    let mut units = vec![0; string.length().min(limit.saturating_mul(2).saturating_add(1))];
    string.write_v2(scope, 0, &mut units, v8::WriteFlags::empty());
    let read = units.len();
    let mut characters = char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER));
    let text: String = characters.by_ref().take(limit).collect();
    let cut = characters.next().is_some() || read < string.length();
    Head { text, cut }
}

/// The beginning of a property that is converted to a string; `None` when it is `undefined`, is a symbol, or cannot be
/// had. May run the function's code.
pub(crate) fn text_property<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    object: v8::Local<'s, v8::Object>,
    name: &str,
    limit: usize,
) -> Option<Head> {
    let key = v8::String::new(scope, name)?;
    let value = object.get(scope, key.into()).filter(|value| !value.is_undefined())?;
    let text = value.to_string(scope)?;
    Some(head(scope, text, limit))
}

/// The error for a thrown value; any JavaScript value can be thrown. May run the function's code: getters of an error.
pub(crate) fn exception<'s>(scope: &mut v8::PinScope<'s, '_>, thrown: v8::Local<'s, v8::Value>) -> InvokeError {
    v8::tc_scope!(let scope, scope);
    if thrown.is_native_error()
        && let Ok(error) = v8::Local::<v8::Object>::try_from(thrown)
    {
        let mut part = |name, limit| {
            let part = text_property(scope, error, name, limit).map(|head| head.text);
            scope.reset();
            part
        };
        let name = part("name", MAX_MESSAGE);
        let message = part("message", MAX_MESSAGE).unwrap_or_default();
        let stack = part("stack", MAX_LOG_LINE);
        let text = match name.as_deref() {
            Some("") => message,
            Some(name) if message.is_empty() => name.to_owned(),
            name => format!("{}: {message}", name.unwrap_or("Error")),
        };
        return invoke_error(&text, name, stack);
    }
    let text = match v8::Local::<v8::String>::try_from(thrown) {
        Ok(text) => head(scope, text, MAX_MESSAGE).text,
        Err(_) => {
            let message = v8::Exception::create_message(scope, thrown).get(scope);
            head(scope, message, MAX_MESSAGE).text
        }
    };
    invoke_error(&text, None, None)
}

/// The error for an exception that deno_core has taken apart.
pub(crate) fn js_error(error: JsError) -> InvokeError {
    invoke_error(&error.exception_message, error.name, error.stack)
}

fn invoke_error(text: &str, name: Option<String>, stack: Option<String>) -> InvokeError {
    let text = text.strip_prefix("Uncaught ").unwrap_or(text);
    let text = text.strip_prefix("(in promise) ").unwrap_or(text);
    let message = one_line(
        text.char_indices()
            .nth(MAX_MESSAGE)
            .map_or(text, |(end, _)| &text[..end]),
    );
    let kind = match name.as_deref() {
        Some("HostServiceError") => ErrorKind::HostService,
        _ => ErrorKind::Exception,
    };
    InvokeError {
        kind,
        message,
        name,
        stack,
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
