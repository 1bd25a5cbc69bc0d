//! Keeps the library's descriptors off 0, 1 and 2: a host that has closed those would take ours for its standard
//! streams, and so would we for its stderr.

use std::fs::File;
use std::os::fd::AsRawFd;

/// Occupies descriptors 0 to 2 while it lives.
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

/// What a probe needs while loaded, with a margin: 3 maps, up to 5 programs and 4 links, their BTF, an epoll and an
/// eventfd.
const NEEDED: u64 = 24;

/// Whether a start is likely to run out of descriptors.
pub fn are_few() -> bool {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a valid rlimit to fill.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return false;
    }
    match std::fs::read_dir("/proc/self/fd") {
        Ok(open) => open.count() as u64 + NEEDED > limit.rlim_cur,
        // Not even the folder can be opened. (Not every container has a /proc.)
        Err(error) => error.raw_os_error() == Some(libc::EMFILE) || limit.rlim_cur <= NEEDED,
    }
}
