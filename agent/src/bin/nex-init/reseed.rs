//! What a machine that runs on needs first: the right time, and random numbers that no copy of it has.

use std::fs::File;
use std::io;

use rustix::ioctl::{Ioctl, IoctlOutput, NoArg, Opcode, ioctl, opcode};
use rustix::time::{ClockId, Timespec, clock_settime};

use crate::control::Seed;
use crate::during;

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// Sets the clock.
///
/// # Errors
/// What the kernel says.
pub(super) fn set_clock(unix_nanos: u64) -> io::Result<()> {
    let now = Timespec {
        tv_sec: i64::try_from(unix_nanos / NANOS_PER_SECOND).unwrap_or(i64::MAX),
        tv_nsec: (unix_nanos % NANOS_PER_SECOND) as _,
    };
    during(|| "setting the clock".to_owned(), clock_settime(ClockId::Realtime, now))
}

/// Makes the kernel's random numbers depend on the seed from now on.
///
/// # Errors
/// What the kernel says.
pub(super) fn reseed(seed: &Seed) -> io::Result<()> {
    let seeded = (|| {
        let random = File::options().write(true).open("/dev/random")?;
        let mut pool = PoolInfo {
            entropy_bits: (Seed::LEN * 8) as i32,
            bytes: Seed::LEN as i32,
            buffer: [0; Seed::LEN],
        };
        pool.buffer.copy_from_slice(seed.as_bytes());
        #[allow(unsafe_code, reason = "ioctls have no safe interface")]
        // SAFETY: the kernel reads the structure, which is as it defines it for this operation; the other takes nothing.
        unsafe {
            ioctl(&random, AddEntropy(pool))?;
            ioctl(&random, NoArg::<RESEED>::new())?;
        }
        io::Result::Ok(())
    })();
    during(|| "reseeding the random number generator".to_owned(), seeded)
}

/// `RNDRESEEDCRNG`: use what was added at once.
const RESEED: Opcode = opcode::none(b'R', 0x07);

/// `struct rand_pool_info` with its buffer.
#[repr(C)]
struct PoolInfo {
    entropy_bits: i32,
    bytes: i32,
    buffer: [u8; Seed::LEN],
}

/// `RNDADDENTROPY`: mixes bytes in and counts them as entropy. Its number is that of the structure without the buffer.
struct AddEntropy(PoolInfo);

#[allow(unsafe_code, reason = "ioctls have no safe interface")]
// SAFETY: the operation only reads from the structure, and its size is in the structure itself.
unsafe impl Ioctl for AddEntropy {
    type Output = ();
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        opcode::write::<[i32; 2]>(b'R', 0x03)
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        (&raw mut self.0).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut std::ffi::c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}
