//! How the `stack` of an error is written: as V8 writes it, without the host's own frames, and with a bound on the
//! message in front of it.
//!
//! deno_core's way of doing it copies a message of any size several times and takes the process down when the result is
//! longer than a string may be, or when the isolate is terminated meanwhile. A function's own
//! `Error.prepareStackTrace` is not called: it would be given the host's functions.

use deno_core::v8;

use super::convert::{self, Head};

/// Characters of the message, and of the name, in front of the frames.
const MAX_HEADER: usize = 4_000;

/// Formats the stack of an error; V8 calls it when `stack` is read for the first time.
pub(super) fn prepare<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    error: v8::Local<'s, v8::Value>,
    sites: v8::Local<'s, v8::Array>,
) -> v8::Local<'s, v8::Value> {
    let text = format(scope, error, sites);
    v8::String::new(scope, &text).map_or_else(|| v8::undefined(scope).into(), Into::into)
}

fn format<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    error: v8::Local<'s, v8::Value>,
    sites: v8::Local<'s, v8::Array>,
) -> String {
    // The error's getters are the function's code: they may throw, and they may be terminated.
    v8::tc_scope!(let scope, scope);
    let mut text = match v8::Local::<v8::Object>::try_from(error) {
        Ok(error) => header(scope, error),
        Err(_) => String::new(),
    };
    let to_string = v8::String::new(scope, "toString");
    for index in 0..sites.length() {
        let Some(frame) = to_string.and_then(|name| frame(scope, sites, index, name)) else {
            break;
        };
        if !is_host(&frame) {
            text.push_str("\n    at ");
            text.push_str(&frame);
        }
    }
    text
}

/// `Name: message`.
fn header<'s>(scope: &mut v8::PinScope<'s, '_>, error: v8::Local<'s, v8::Object>) -> String {
    let name = part(scope, error, "name").unwrap_or_else(|| "Error".into());
    let message = part(scope, error, "message").unwrap_or_default();
    match (name.is_empty(), message.is_empty()) {
        (false, false) => format!("{name}: {message}"),
        (false, true) => name,
        (true, _) => message,
    }
}

fn part<'s>(scope: &mut v8::PinScope<'s, '_>, error: v8::Local<'s, v8::Object>, name: &str) -> Option<String> {
    let Head { text, cut } = convert::text_property(scope, error, name, MAX_HEADER)?;
    Some(if cut { text + "\u{2026}" } else { text })
}

fn frame<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    sites: v8::Local<'s, v8::Array>,
    index: u32,
    to_string: v8::Local<'s, v8::String>,
) -> Option<String> {
    let site = sites.get_index(scope, index)?.to_object(scope)?;
    let method = v8::Local::<v8::Function>::try_from(site.get(scope, to_string.into())?).ok()?;
    let text = v8::Local::<v8::String>::try_from(method.call(scope, site.into(), &[])?).ok()?;
    Some(convert::head(scope, text, MAX_HEADER).text)
}

/// Whether a frame, `name (place)` or `place`, is in the host's own JavaScript.
fn is_host(frame: &str) -> bool {
    let place = frame.rsplit_once('(').map_or(frame, |(_, place)| place);
    let place = place.strip_prefix("async ").unwrap_or(place);
    place.starts_with("ext:")
}
