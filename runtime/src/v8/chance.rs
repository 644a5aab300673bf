//! Random numbers of an isolate that is given to a function.
//!
//! V8 seeds a generator when it makes an isolate, which is where `Math.random` gets its numbers from at its first use. Blank
//! isolates are made long before that, and a virtual machine may be copied with its blank isolates in between: without a new
//! seed, all copies would draw the same numbers. (What V8 has hashed until then, it has hashed with the seed of the
//! original; isolates made later have their own.)

use std::ffi::c_void;
use std::io;

use deno_core::v8;
use rand::TryRng;

#[allow(unsafe_code, reason = "functions of V8 that its Rust bindings do not carry")]
unsafe extern "C" {
    /// `v8::internal::Isolate::random_number_generator`: makes one if there is none.
    #[link_name = "_ZN2v88internal7Isolate23random_number_generatorEv"]
    fn random_number_generator(isolate: v8::UnsafeRawIsolatePtr) -> *mut c_void;
    /// `v8::base::RandomNumberGenerator::SetSeed`.
    #[link_name = "_ZN2v84base21RandomNumberGenerator7SetSeedEl"]
    fn set_seed(generator: *mut c_void, seed: i64);
}

/// Gives this thread's isolate a seed of its own. `Math.random` takes it at its first use, and not
/// any more after that.
///
/// # Errors
/// When the system has no random numbers.
#[allow(unsafe_code, reason = "functions of V8 that its Rust bindings do not carry")]
pub(super) fn reseed(isolate: &mut v8::Isolate) -> io::Result<()> {
    let seed = fresh_seed()?;
    // SAFETY: it is a living isolate, a `v8::Isolate` is a `v8::internal::Isolate`, and this thread has it to itself; the
    // generator belongs to it and takes any seed.
    unsafe {
        let generator = random_number_generator(isolate.as_raw_isolate_ptr());
        set_seed(generator, seed);
    }
    Ok(())
}

/// From the system, not from a generator in this process, which would have been copied with it.
fn fresh_seed() -> io::Result<i64> {
    let mut bytes = [0; size_of::<i64>()];
    rand::rngs::SysRng
        .try_fill_bytes(&mut bytes)
        .map_err(io::Error::other)?;
    Ok(i64::from_ne_bytes(bytes))
}
