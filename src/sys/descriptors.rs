//! Keeps the library's descriptors off 0, 1 and 2: a host that has closed those would take ours for its standard
//! streams, and so would we for its stderr.

use std::fs::File;
use std::os::fd::AsRawFd;

use rustix::process::{Resource, getrlimit};

/// While it lives, descriptors 0 to 2 are taken.
pub struct StandardStreams(#[allow(dead_code)] Vec<File>);

impl StandardStreams {
    /// Occupies those that are closed. If nothing can be opened any more, nothing can land there by accident either.
    pub fn hold() -> Self {
        let mut held = Vec::new();
        while let Some(fd) = lowest_closed() {
            match File::open("/dev/null") {
                // Another descriptor: another thread was faster.
                Ok(file) if file.as_raw_fd() == fd => held.push(file),
                Ok(_) | Err(_) => break,
            }
        }
        Self(held)
    }
}

fn lowest_closed() -> Option<i32> {
    // SAFETY: F_GETFD takes any number as a descriptor, and changes nothing.
    (0..=2).find(|fd| unsafe { libc::fcntl(*fd, libc::F_GETFD) } == -1)
}

/// Whether fewer descriptors than these are left.
pub fn are_few(needed: usize) -> bool {
    let needed = needed as u64;
    let Some(limit) = getrlimit(Resource::Nofile).current else {
        return false;
    };
    match std::fs::read_dir("/proc/self/fd") {
        Ok(open) => open.count() as u64 + needed > limit,
        // Not even the folder can be opened. (Not every container has a /proc.)
        Err(error) => error.raw_os_error() == Some(libc::EMFILE) || limit <= needed,
    }
}
