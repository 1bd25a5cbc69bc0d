//! Lists folders of /proc. The standard library panics if the host closes the descriptor meanwhile (close_range), and
//! allocates memory for each name.

use std::ffi::CStr;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::RawFd;

use crate::sys::own_fd::Identity;

/// The kernel fills as much as fits.
const BUFFER_LEN: usize = 1 << 13;

/// `struct linux_dirent64` (include/linux/dirent.h): inode and offset, its length, a type, and the name.
const LENGTH_AT: usize = 16;
const NAME_AT: usize = 19;

/// Calls `each` with the folder's descriptor and the name of each entry, `.` and `..` included, until it says to stop.
pub fn list(path: &CStr, mut each: impl FnMut(RawFd, &CStr) -> ControlFlow<()>) -> io::Result<()> {
    let folder = Folder::open(path)?;
    // Aligned, because the kernel writes numbers into it.
    let mut buffer = [0u64; BUFFER_LEN / size_of::<u64>()];
    loop {
        // SAFETY: room for so many bytes.
        let filled = unsafe { libc::syscall(libc::SYS_getdents64, folder.fd, buffer.as_mut_ptr(), BUFFER_LEN) };
        let filled = usize::try_from(filled).map_err(|_| io::Error::last_os_error())?;
        if filled == 0 {
            return Ok(());
        }
        // SAFETY: the buffer is plain bytes, and longer than what the kernel has filled.
        let entries = unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), filled.min(BUFFER_LEN)) };
        if names(entries, |name| each(folder.fd, name)).is_break() {
            return Ok(());
        }
    }
}

/// The names of entries as the kernel writes them, up to the first malformed one.
fn names(mut entries: &[u8], mut each: impl FnMut(&CStr) -> ControlFlow<()>) -> ControlFlow<()> {
    let length = |entry: &[u8]| Some(usize::from(u16::from_ne_bytes(*entry.get(LENGTH_AT..)?.first_chunk()?)));
    while let Some(entry) = length(entries).filter(|length| *length > NAME_AT).and_then(|length| entries.get(..length))
    {
        if let Ok(name) = CStr::from_bytes_until_nul(&entry[NAME_AT..]) {
            each(name)?;
        }
        entries = &entries[entry.len()..];
    }
    ControlFlow::Continue(())
}

/// The target of a symbolic link in a folder, cut to the buffer's length.
pub fn read_link<'buf>(folder: RawFd, name: &CStr, buffer: &'buf mut [u8]) -> Option<&'buf [u8]> {
    // SAFETY: a NUL-terminated name, and room for so many bytes.
    let length = unsafe { libc::readlinkat(folder, name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) };
    buffer.get(..usize::try_from(length).ok()?)
}

struct Folder {
    fd: RawFd,
    identity: Option<Identity>,
}

impl Folder {
    fn open(path: &CStr) -> io::Result<Self> {
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
        // SAFETY: a NUL-terminated path.
        let fd = unsafe { libc::open(path.as_ptr(), flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { fd, identity: Identity::glance(fd) })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Each folder of /proc has its own inode.
        if self.identity.is_some_and(|identity| identity.may_be_of(self.fd)) {
            // SAFETY: this value owns it.
            unsafe { libc::close(self.fd) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::os::fd::AsRawFd;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_folder_is_listed_whole() {
        let mut listed = BTreeSet::new();
        list(c"/proc", |_, name| {
            listed.insert(name.to_str().unwrap().to_owned());
            ControlFlow::Continue(())
        })
        .unwrap();
        assert!(listed.remove(".") && listed.remove(".."));
        for name in ["self", "1", "sys", &std::process::id().to_string()] {
            assert!(listed.contains(name), "{name}");
        }
        assert!(list(c"/proc/no-such-folder", |_, _| ControlFlow::Continue(())).is_err());
        assert!(list(c"/proc/version", |_, _| ControlFlow::Continue(())).is_err());
    }

    #[test]
    fn a_listing_ends_where_it_is_told() {
        let mut count = 0;
        list(c"/proc", |_, _| {
            count += 1;
            if count == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
        assert_eq!(count, 3);
    }

    #[test]
    fn more_entries_than_fit_into_a_buffer_come_each_once() {
        let files: Vec<_> = (0..1000).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        let (mut seen, mut buffer) = (BTreeSet::new(), [0; 64]);
        list(c"/proc/self/fd", |folder, name| {
            let is_new = seen.insert(name.to_owned());
            assert!(is_new, "{name:?} came twice");
            if name.to_bytes() == files[999].as_raw_fd().to_string().as_bytes() {
                assert_eq!(read_link(folder, name, &mut buffer), Some(b"/dev/null".as_slice()));
            }
            ControlFlow::Continue(())
        })
        .unwrap();
        for file in &files {
            assert!(seen.contains(&std::ffi::CString::new(file.as_raw_fd().to_string()).unwrap()));
        }
    }

    proptest! {
        #[test]
        fn hostile_entries_are_passed_over(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let all = names(&bytes, |name| {
                assert!(name.to_bytes().len() < bytes.len());
                ControlFlow::Continue(())
            });
            assert!(all.is_continue());
        }
    }
}
