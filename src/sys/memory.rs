//! Whether the process may have more memory. Limits (RLIMIT_AS, RLIMIT_DATA) are found by trial.

use std::{io, ptr};

use crate::error::Error;

/// What a start takes, with a margin: the stacks of its threads, the kernel's types, buffers and maps.
const FOR_A_START: usize = 24 << 20;

/// The remedy for limits of memory.
pub const REMEDY: &str = "raise the limits of memory (ulimit -v, ulimit -d)";

/// Whether so many bytes are available right now.
pub fn is_there(bytes: usize) -> bool {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at a place that the kernel chooses; it has no other user, and is not touched.
    unsafe {
        let start = libc::mmap(ptr::null_mut(), bytes, protection, flags, -1, 0);
        start != libc::MAP_FAILED && libc::munmap(start, bytes) == 0
    }
}

/// Fails if a start would run out of memory halfway: small allocations are not checked there, and would abort the
/// process.
pub fn check_for_a_start() -> Result<(), Error> {
    if is_there(FOR_A_START) {
        return Ok(());
    }
    let source = io::Error::from_raw_os_error(libc::ENOMEM);
    Err(Error::System { what: "taking the 24 MiB of memory that a start needs", remedy: REMEDY, source })
}
