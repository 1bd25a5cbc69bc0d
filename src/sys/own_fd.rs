//! Descriptors of this library that a host may have closed: daemons and runtimes call close_range(2), or close every number
//! that there is, and then open files of their own under the same numbers. Those must not be written to, read from or closed.

use std::mem::{self, ManuallyDrop};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// What a descriptor stands for. Files without a name of their own (eventfds, BPF maps and the like) share one inode; what
/// they are is told by /proc, where there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    device: u64,
    inode: u64,
    /// Of what /proc says of the file; 0 where it says nothing.
    details: u64,
}

impl Identity {
    /// As it is now. `None` where it is closed.
    ///
    /// Async-signal-safe: system calls alone, and errno is left as it was.
    pub fn of(fd: RawFd) -> Option<Self> {
        keeping_errno(|| Some(Self { details: details(fd), ..Self::glance(fd)? }))
    }

    /// The same by one system call, without what /proc says.
    pub fn glance(fd: RawFd) -> Option<Self> {
        keeping_errno(|| {
            // SAFETY: plain numbers, for which zeroes are valid.
            let mut status: libc::stat = unsafe { mem::zeroed() };
            // SAFETY: a structure to fill. Any number may be given for a descriptor.
            let result = unsafe { libc::fstat(fd, &raw mut status) };
            (result == 0).then_some(Self { device: status.st_dev, inode: status.st_ino, details: 0 })
        })
    }

    /// As numbers, for atomics.
    pub fn numbers(self) -> [u64; 3] {
        [self.device, self.inode, self.details]
    }

    /// Of those.
    pub fn from_numbers([device, inode, details]: [u64; 3]) -> Self {
        Self { device, inode, details }
    }

    /// Whether the descriptor stands for this.
    pub fn is_of(&self, fd: RawFd) -> bool {
        Self::of(fd) == Some(*self)
    }

    /// Whether that may be, by a glance: another of the host's files without a name is not told from it.
    pub fn may_be_of(&self, fd: RawFd) -> bool {
        Self::glance(fd).is_some_and(|now| (now.device, now.inode) == (self.device, self.inode))
    }
}

fn keeping_errno<T>(body: impl FnOnce() -> T) -> T {
    // SAFETY: errno is thread-local and always there.
    unsafe {
        let errno = libc::__errno_location();
        let before = *errno;
        let result = body();
        *errno = before;
        result
    }
}

/// Bytes of a path below /proc, NUL included.
const PATH: usize = 48;

/// `/proc/thread-self/FOLDER/FD`, NUL-terminated. By hand, and without an index that could be out of bounds: neither to format
/// nor to panic is async-signal-safe.
fn path(folder: &[u8], fd: RawFd) -> [u8; PATH] {
    const PLACES: [u32; 10] = [1_000_000_000, 100_000_000, 10_000_000, 1_000_000, 100_000, 10_000, 1_000, 100, 10, 1];

    let fd = fd.unsigned_abs();
    let digits = PLACES.iter().filter(|place| fd >= **place || **place == 1);
    let digits = digits.map(|place| b"0123456789"[fd.checked_div(*place).unwrap_or(0) as usize % 10]);
    let mut path = [0; PATH];
    let bytes = b"/proc/thread-self/".iter().chain(folder).copied().chain(digits);
    // The last one stays 0.
    for (to, from) in path.iter_mut().take(PATH - 1).zip(bytes) {
        *to = from;
    }
    path
}

/// Lines of /proc/PID/fdinfo that stay the same for as long as the file is open: the numbers of eventfds (since Linux 5.2), and of
/// BPF's maps, programs and links; and what an epoll instance waits for.
const LINES: [&[u8]; 5] = [b"eventfd-id:", b"map_id:", b"prog_id:", b"link_id:", b"tfd:"];

/// A hash of what /proc says of a file.
fn details(fd: RawFd) -> u64 {
    let mut hash = Hash::default();
    let mut buffer = [0u8; 1024];
    // SAFETY: a NUL-terminated path, and room for so many bytes.
    let length = unsafe { libc::readlink(path(b"fd/", fd).as_ptr().cast(), buffer.as_mut_ptr().cast(), buffer.len()) };
    let Some(target) = usize::try_from(length).ok().and_then(|length| buffer.get(..length)) else {
        return 0;
    };
    hash.add(target);
    // SAFETY: a NUL-terminated path; the descriptor is this function's own.
    let length = unsafe {
        let info = libc::open(path(b"fdinfo/", fd).as_ptr().cast(), libc::O_RDONLY | libc::O_CLOEXEC);
        if info < 0 {
            return hash.0;
        }
        let length = libc::read(info, buffer.as_mut_ptr().cast(), buffer.len());
        libc::close(info);
        length
    };
    let text = usize::try_from(length).ok().and_then(|length| buffer.get(..length)).unwrap_or_default();
    for line in text.split(|byte| *byte == b'\n') {
        if LINES.iter().any(|start| line.starts_with(start)) {
            hash.add(line);
        }
    }
    hash.0
}

/// FNV-1a.
struct Hash(u64);

impl Default for Hash {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hash {
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

/// A descriptor that is closed when this is dropped, unless it stands for something else by then.
#[derive(Debug)]
pub struct OwnFd {
    fd: ManuallyDrop<OwnedFd>,
    identity: Option<Identity>,
}

impl OwnFd {
    /// Takes it over.
    pub fn new(fd: OwnedFd) -> Self {
        let identity = Identity::of(fd.as_raw_fd());
        Self { fd: ManuallyDrop::new(fd), identity }
    }

    /// This library has changed what it stands for, as what an epoll instance waits for.
    pub fn changed(&mut self) {
        self.identity = Identity::of(self.as_raw_fd());
    }

    /// Whether it still is what it was, by a glance.
    pub fn may_be_ours(&self) -> bool {
        self.identity.is_some_and(|identity| identity.may_be_of(self.as_raw_fd()))
    }

    /// Whether it still is what it was.
    pub fn is_ours(&self) -> bool {
        self.identity.is_some_and(|identity| identity.is_of(self.as_raw_fd()))
    }
}

impl AsRawFd for OwnFd {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl AsFd for OwnFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for OwnFd {
    fn drop(&mut self) {
        if self.is_ours() {
            // SAFETY: it is not used again.
            unsafe { ManuallyDrop::drop(&mut self.fd) };
        }
    }
}

/// Descriptors, and what each stands for now.
pub fn identified(fds: impl IntoIterator<Item = RawFd>) -> Vec<(RawFd, Identity)> {
    fds.into_iter().filter_map(|fd| Some((fd, Identity::of(fd)?))).collect()
}

/// Whether all of them still stand for that.
pub fn is_whole(fds: &[(RawFd, Identity)]) -> bool {
    fds.iter().all(|(fd, identity)| identity.is_of(*fd))
}

/// Closes those that still do, of something that has lost the others and is never dropped.
pub fn close_those_left(fds: &[(RawFd, Identity)]) {
    for (fd, _) in fds.iter().filter(|(fd, identity)| identity.is_of(*fd)) {
        // SAFETY: what it belongs to is never used again.
        unsafe { libc::close(*fd) };
    }
}

/// Something of another library's that closes descriptors when it is dropped: it is left alone for good where one of them
/// stands for something else by then.
pub struct Guarded<T> {
    value: ManuallyDrop<T>,
    fds: Vec<(RawFd, Identity)>,
}

impl<T> Guarded<T> {
    /// With the descriptors that it owns.
    pub fn new(value: T, fds: impl IntoIterator<Item = RawFd>) -> Self {
        Self { value: ManuallyDrop::new(value), fds: identified(fds) }
    }

    /// The same by a glance.
    pub fn may_be_whole(&self) -> bool {
        self.fds.iter().all(|(fd, identity)| identity.may_be_of(*fd))
    }

    /// Whether all of them still are what they were.
    pub fn is_whole(&self) -> bool {
        is_whole(&self.fds)
    }
}

impl<T> std::ops::Deref for Guarded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> std::ops::DerefMut for Guarded<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T> Drop for Guarded<T> {
    fn drop(&mut self) {
        if self.is_whole() {
            // SAFETY: it is not used again.
            unsafe { ManuallyDrop::drop(&mut self.value) };
            return;
        }
        close_those_left(&self.fds);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{FromRawFd, IntoRawFd};
    use std::os::unix::net::UnixDatagram;

    use rustix::event::EventfdFlags;

    use super::*;
    use crate::sys::wake::new_eventfd;

    /// Has `fd` stand for another file.
    fn replace(fd: RawFd, by: &impl AsRawFd) {
        // SAFETY: two open descriptors.
        assert_eq!(unsafe { libc::dup2(by.as_raw_fd(), fd) }, fd);
    }

    /// A descriptor with an inode of its own, which tells it from whatever another test opens under its number.
    fn unique() -> OwnedFd {
        UnixDatagram::unbound().unwrap().into()
    }

    #[test]
    fn what_is_ours_is_closed() {
        let own = OwnFd::new(unique());
        assert!(own.is_ours() && own.may_be_ours());
        let fd = own.as_raw_fd();
        let identity = own.identity.unwrap();
        drop(own);
        assert!(!identity.is_of(fd));
    }

    #[test]
    fn what_the_host_has_put_in_its_place_is_not() {
        let other_socket = unique();
        let other_eventfd = new_eventfd(EventfdFlags::empty()).unwrap();
        for is_eventfd in [false, true] {
            let own = OwnFd::new(new_eventfd(EventfdFlags::empty()).unwrap());
            let fd = own.as_raw_fd();
            if is_eventfd {
                replace(fd, &other_eventfd);
            } else {
                replace(fd, &other_socket);
                assert!(!own.may_be_ours());
            }
            assert!(!own.is_ours());
            let placed = Identity::of(fd).unwrap();
            drop(own);
            assert!(placed.is_of(fd));
            // SAFETY: the test's own.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }

    #[test]
    fn something_that_has_lost_one_descriptor_is_left_alone() {
        let (kept, lost) = (unique().into_raw_fd(), unique().into_raw_fd());
        let kept_identity = Identity::of(kept).unwrap();
        // SAFETY: the test's own, twice: only one of the two is ever dropped.
        let value = || unsafe { [OwnedFd::from_raw_fd(kept), OwnedFd::from_raw_fd(lost)] };
        let guarded = Guarded::new(value(), [kept, lost]);
        assert!(guarded.is_whole());
        replace(lost, &unique());
        let placed = Identity::of(lost).unwrap();
        assert!(!guarded.is_whole());
        drop(guarded);
        assert!(!kept_identity.is_of(kept) && placed.is_of(lost));
        // SAFETY: the test's own.
        drop(unsafe { OwnedFd::from_raw_fd(lost) });
    }

    #[test]
    fn paths_are_whole() {
        for fd in [0, 7, 10, 4711, RawFd::MAX] {
            let path = path(b"fdinfo/", fd);
            let text = std::ffi::CStr::from_bytes_until_nul(&path).unwrap().to_str().unwrap();
            assert_eq!(text, format!("/proc/thread-self/fdinfo/{fd}"));
        }
    }
}
