//! Files named by the user. Checks their kind in a way that neither hangs on nor changes a file of another kind.

use std::fs::{File, Metadata, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::fstatfs;

/// More than any kernel's types take: some 10 MiB as BTF, less than 1 GiB in an ELF file with debug information.
const MOST_BTF_BYTES: u64 = 2 << 30;

/// include/uapi/linux/magic.h.
const NSFS_MAGIC: i64 = 0x6e73_6673;
const CGROUP2_SUPER_MAGIC: i64 = 0x6367_7270;

/// `NS_GET_NSTYPE` (include/uapi/linux/nsfs.h).
const NS_GET_NSTYPE: u32 = 0xb703;

/// A possible BTF file: a regular file of bounded size that this process may read.
pub fn readable_btf(path: &Path) -> Option<File> {
    // A test's records, in place of the kernel that would write them.
    #[cfg(any(test, feature = "synthetic"))]
    if is_socket(path) {
        return locate(path);
    }
    open_checked(path, |file| file.metadata().is_ok_and(|file| file.is_file() && file.len() <= MOST_BTF_BYTES))
}

/// Whether it is a socket.
#[cfg(any(test, feature = "synthetic"))]
pub fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;

    std::fs::metadata(path).is_ok_and(|file| file.file_type().is_socket())
}

/// The file of a network namespace. `None` if it is anything else.
pub fn network_namespace(path: &Path) -> Option<Metadata> {
    let file = open_checked(path, |file| file_system(file) == Some(NSFS_MAGIC))?;
    // SAFETY: the request takes nothing, and returns a number.
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE.into()) };
    (kind == libc::CLONE_NEWNET).then(|| file.metadata().ok())?
}

/// The folder of a cgroup, version 2: the kernel gives a socket's cgroup of that version only. `None` if it is anything
/// else.
pub fn cgroup_folder(path: &Path) -> Option<Metadata> {
    let file = locate(path)?;
    let folder = file.metadata().ok()?;
    (folder.is_dir() && file_system(&file) == Some(CGROUP2_SUPER_MAGIC)).then_some(folder)
}

/// Opens a file for reading after checking its kind: opening a device may change something.
fn open_checked(path: &Path, is_right: impl Fn(&File) -> bool) -> Option<File> {
    let found = locate(path).filter(|file| is_right(file))?;
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path).ok()?;
    // It may have been replaced meanwhile.
    let [found, opened] = [&found, &file].map(|file| file.metadata().ok().map(|file| (file.dev(), file.ino())));
    (found == opened && is_right(&file)).then_some(file)
}

/// A file that can be examined but not read.
fn locate(path: &Path) -> Option<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path).ok()
}

/// The magic number of its file system.
fn file_system(file: &File) -> Option<i64> {
    #[allow(clippy::unnecessary_cast, clippy::cast_lossless, reason = "the type differs between architectures")]
    fstatfs(file).ok().map(|found| found.f_type as i64)
}
