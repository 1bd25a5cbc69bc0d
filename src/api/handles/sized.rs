//! Structures that begin with, or come with, their own size, so that programs and library may be of different versions.
//! What one side does not know of is 0 (as the kernel does it: copy_struct_from_user).

use std::mem::{MaybeUninit, size_of};
use std::{ptr, slice};

use super::types::{tcpevent_event, tcpevent_statistics};
use crate::error::Error;

/// Programs that were compiled with the first version have structures of these sizes.
pub const FIRST_EVENT_SIZE: usize = 232;
/// The same of statistics.
pub const FIRST_STATISTICS_SIZE: usize = 152;

/// No later version's structure will be longer: what is, is not initialised.
pub const MOST_STRUCT_SIZE: usize = 4096;

const _: () = assert!(size_of::<tcpevent_event>() >= FIRST_EVENT_SIZE);
const _: () = assert!(size_of::<tcpevent_statistics>() >= FIRST_STATISTICS_SIZE);

/// Reads a structure of `size` bytes, of which `T` may know fewer or more. All-zero bytes must be a valid `T`.
///
/// # Safety
///
/// `from` is valid for `size` bytes, which are of a structure that begins as `T` does.
pub unsafe fn read<T: Copy>(from: *const u8, size: usize) -> Result<T, Error> {
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: the caller's promise; what `T` does not know is looked at as bytes only.
    unsafe {
        let known = size.min(size_of::<T>());
        ptr::copy_nonoverlapping(from, value.as_mut_ptr().cast(), known);
        if slice::from_raw_parts(from.add(known), size - known).iter().any(|byte| *byte != 0) {
            return Err(Error::Argument {
                what: "options->size is greater than this version's, and what it does not know is not 0: leave that out, or \
                       update libtcpEvent.so",
                errno: libc::E2BIG,
            });
        }
        Ok(value.assume_init())
    }
}

/// Writes as much of a structure as `size` bytes hold, and 0 behind it.
///
/// # Safety
///
/// `to` is valid for `size` bytes.
pub unsafe fn write<T: Copy>(value: &T, to: *mut u8, size: usize) {
    let known = size.min(size_of::<T>());
    // SAFETY: the caller's promise, and `known` is not more than either has.
    unsafe {
        ptr::copy_nonoverlapping(ptr::from_ref(value).cast(), to, known);
        to.add(known).write_bytes(0, size - known);
    }
}
