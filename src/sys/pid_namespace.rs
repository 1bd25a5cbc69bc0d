//! The PID namespace in which process IDs are reported: that of /proc, usually the library's own.

use std::fs;
use std::os::unix::fs::MetadataExt;

/// The inode number of the initial one (include/linux/proc_ns.h).
const PROC_PID_INIT_INO: u64 = 0xEFFF_FFFC;

/// A PID namespace other than the initial one, by device and inode number of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PidNamespace {
    /// The same for all namespaces.
    pub device: u64,
    /// Its number to the kernel, too.
    pub inode: u32,
}

impl PidNamespace {
    /// `None` if it is the initial one, or /proc does not say.
    pub fn find() -> Option<Self> {
        // A process in a new namespace may still have the old /proc. Names are looked up there, so its IDs count.
        let path = if proc_is_own() { "/proc/self/ns/pid" } else { "/proc/1/ns/pid" };
        let file = fs::metadata(path).ok().filter(|file| file.ino() != PROC_PID_INIT_INO)?;
        Some(Self { device: file.dev(), inode: file.ino().try_into().ok()? })
    }
}

/// Whether /proc is that of the library's own PID namespace. True if there is no /proc.
pub fn proc_is_own() -> bool {
    fs::read_to_string("/proc/self/status").map_or(true, |status| is_own(&status))
}

/// There is one ID for each namespace, from that of /proc to the process's own.
fn is_own(status: &str) -> bool {
    let ids = status.lines().find_map(|line| line.strip_prefix("NStgid:"));
    ids.is_none_or(|ids| ids.split_whitespace().count() == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_proc_is_told_from_the_own_one() {
        assert!(is_own("Name:\tx\nNStgid:\t4711\nNSpid:\t4711\n"));
        assert!(!is_own("Name:\tx\nNStgid:\t4711\t1\nNSpid:\t4711\t1\n"));
        assert!(is_own("Name:\tx\n"));
    }
}
