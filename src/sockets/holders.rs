//! Which process holds a socket's inode open: from a BPF iterator over all open files if one is attached, otherwise
//! from `/proc/PID/fd`, which takes thirty times as long.

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::str;
use std::sync::Mutex;

use libbpf_rs::libbpf_sys;
use zerocopy::FromBytes;

use crate::event::COMM_LEN;
use crate::sys::folder;
use crate::sys::own_fd::OwnFd;
use crate::sys::pid_namespace;
use crate::sys::shared::tcp_holder;
use crate::sys::threads::lock;

/// Process by socket inode, as it was at one moment.
///
/// A socket that several processes share goes to the one with the highest process ID: of a parent and the child it
/// forked to serve a connection, the child.
#[derive(Debug, Default)]
pub struct Owners {
    by_inode: HashMap<u64, u32>,
    /// The preferred holder of an inode. Once it is seen to hold it, the holder's entry is [`PREFERRED`].
    preferred: HashMap<u64, u32>,
    /// All processes were covered, not just those this process may inspect.
    are_all: bool,
}

/// Link target of an io_uring's descriptor.
const RING_LINK: &str = "anon_inode:[io_uring]";

/// At most so much of a ring's fdinfo is read: it lists the ring's files, and its pending work too.
const MOST_RING_INFO: u64 = 4 << 20;

/// A busy ring does not list its files at that moment.
const RING_TRIES: usize = 3;

/// Above all process IDs.
const PREFERRED: u32 = u32::MAX;

/// The iterator of a probe, while that is attached.
#[derive(Default)]
pub struct HolderIterator(Mutex<Option<OwnFd>>);

/// The kernel fills up to 32 KiB at once.
const HOLDERS_LEN: usize = 1 << 15;

impl HolderIterator {
    /// No iterator.
    pub const fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// Takes over a link to the iterator's program. It lists processes of the own PID namespace; if /proc shows more,
    /// /proc is read instead.
    pub fn set(&self, link: Option<OwnedFd>) {
        *lock(&self.0) = link.filter(|_| pid_namespace::proc_is_own()).map(OwnFd::new);
    }

    /// A run of the iterator. `None` if there is no iterator, or it cannot run.
    fn start(&self) -> Option<File> {
        let link = lock(&self.0);
        // SAFETY: the link is open for as long as the lock is held.
        let fd = unsafe { libbpf_sys::bpf_iter_create(link.as_ref()?.as_raw_fd()) };
        // SAFETY: the kernel has just returned the descriptor; it has no other owner.
        (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) }.into())
    }
}

/// Whether whoever looks is to stop: with many sockets it takes seconds.
pub type IsOver<'run> = &'run dyn Fn() -> bool;

impl Owners {
    /// Finds the holders of all sockets.
    pub fn find(iterator: &HolderIterator, is_over: IsOver<'_>) -> io::Result<Self> {
        let mut search = Search { owners: Self::default(), is_over };
        if !search.iterate(iterator) {
            search.scan()?;
        }
        Ok(search.owners)
    }

    /// As `find`, with a preferred holder for some inodes: a process known to hold it, or to have held it. Without an
    /// iterator only those processes are inspected, because inspecting all may take seconds.
    pub fn find_preferring(iterator: &HolderIterator, preferred: HashMap<u64, u32>, is_over: IsOver<'_>) -> Self {
        let mut search = Search { owners: Self { preferred, ..Self::default() }, is_over };
        if !search.iterate(iterator) {
            let processes: HashSet<u32> = search.owners.preferred.values().copied().filter(|pid| *pid != 0).collect();
            for pid in processes {
                let _ = search.scan_process(pid);
            }
        }
        search.owners
    }

    /// Fails where there is no memory: the kernel determines how many there are.
    fn insert(&mut self, inode: u64, pid: u32) -> io::Result<()> {
        self.by_inode.try_reserve(1).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let holder = self.by_inode.entry(inode).or_insert(pid);
        let is_preferred = !self.preferred.is_empty() && self.preferred.get(&inode) == Some(&pid);
        *holder = (*holder).max(if is_preferred { PREFERRED } else { pid });
        Ok(())
    }

    /// Whether an inode without a holder here has none at all, rather than one that this process may not inspect.
    pub fn are_all(&self) -> bool {
        self.are_all
    }

    /// Number of held inodes.
    pub fn count(&self) -> usize {
        self.by_inode.len()
    }

    /// The process that holds this inode.
    pub fn holder(&self, inode: u64) -> Option<u32> {
        let holder = self.by_inode.get(&inode)?;
        Some(if *holder == PREFERRED { self.preferred[&inode] } else { *holder })
    }
}

/// A look at what processes hold. What ends it early: it is over, or there is no memory.
struct Search<'run> {
    owners: Owners,
    is_over: IsOver<'run>,
}

impl Search<'_> {
    /// Whether the iterator has listed everything.
    fn iterate(&mut self, iterator: &HolderIterator) -> bool {
        self.owners.are_all = iterator.start().is_some_and(|run| self.read(run).is_ok());
        self.owners.are_all
    }

    /// Reads the iterator's output.
    fn read(&mut self, mut run: File) -> io::Result<()> {
        let mut buffer = vec![0; HOLDERS_LEN];
        // A read may end in the middle of a holder.
        let mut kept = 0;
        loop {
            self.go_on()?;
            let count = match run.read(&mut buffer[kept..]) {
                Ok(0) => return Ok(()),
                Ok(count) => kept + count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let mut rest = &buffer[..count];
            while let Ok((holder, behind)) = tcp_holder::read_from_prefix(rest) {
                match holder {
                    tcp_holder { inode: 0, pid, fd } => self.scan_ring(pid, &format!("/proc/{pid}/fdinfo/{fd}"))?,
                    tcp_holder { inode, pid, fd: _ } => self.owners.insert(inode, pid)?,
                }
                rest = behind;
            }
            kept = rest.len();
            buffer.copy_within(count - kept..count, 0);
        }
    }

    /// Inspects all processes that this one may inspect. Skips those that vanish meanwhile.
    fn scan(&mut self) -> io::Result<()> {
        self.for_each(c"/proc", |this, _, name| number(name).map_or(Ok(()), |pid| this.scan_process(pid)))?
    }

    /// Adds what a process holds.
    ///
    /// Its threads usually share one table of descriptors. A thread may have its own (unshare(CLONE_FILES)), and a main
    /// thread that ended before others has none any more.
    fn scan_process(&mut self, pid: u32) -> io::Result<()> {
        let of_main = self.scan_descriptors(pid, &format!("/proc/{pid}/fd"))?;
        if thread_count(pid) <= 1 {
            return Ok(());
        }
        // Once another thread's table has been read, the rest share that one unless they differ from it.
        let mut read = (of_main > 0).then_some(pid);
        let listed = self.for_each(&path(&format!("/proc/{pid}/task")), |this, _, name| {
            let Some(tid) = number(name).filter(|tid| *tid != pid) else {
                return Ok(());
            };
            if read.is_some_and(|read| share_descriptors(read, tid)) {
                return Ok(());
            }
            if this.scan_descriptors(pid, &format!("/proc/{pid}/task/{tid}/fd"))? > 0 {
                read = read.or(Some(tid));
            }
            Ok(())
        });
        listed.unwrap_or(Ok(()))
    }

    /// Adds the sockets of one table. Returns the number of descriptors.
    fn scan_descriptors(&mut self, pid: u32, fds: &str) -> io::Result<usize> {
        let mut count = 0;
        let mut target = [0; 64];
        let listed = self.for_each(&path(fds), |this, folder, name| {
            // Skips `.` and `..`.
            if number(name).is_none() {
                return Ok(());
            }
            count += 1;
            let target = folder::read_link(folder, name, &mut target).and_then(|target| str::from_utf8(target).ok());
            if let Some(inode) = target.and_then(parse_socket_link) {
                this.owners.insert(inode, pid)?;
            } else if target == Some(RING_LINK) {
                let name = name.to_string_lossy();
                this.scan_ring(pid, &format!("{fds}info/{name}"))?;
            }
            Ok(())
        });
        // It may be gone, or another user's.
        listed.unwrap_or(Ok(())).map(|()| count)
    }

    /// Adds the sockets that an io_uring holds to its process. Older kernels do not give their inodes.
    fn scan_ring(&mut self, pid: u32, info: &str) -> io::Result<()> {
        for _ in 0..RING_TRIES {
            let mut text = Vec::new();
            let Ok(file) = File::open(info) else {
                return Ok(());
            };
            if file.take(MOST_RING_INFO).read_to_end(&mut text).is_err() {
                return Ok(());
            }
            let text = String::from_utf8_lossy(&text);
            let mut lines = text.lines();
            if !lines.any(|line| line.starts_with("UserFiles:")) {
                continue;
            }
            // Such lines start with a slot's number, padded with blanks.
            for line in lines.take_while(|line| line.starts_with(' ') || line.starts_with(char::is_numeric)) {
                let file = line.split_once(": ").map_or("", |(_, file)| file);
                if let Some(inode) = parse_socket_link(file) {
                    self.owners.insert(inode, pid)?;
                }
            }
            break;
        }
        Ok(())
    }

    /// Calls `each` for the entries of a folder until it fails, or all is over. The outer error is that of the folder.
    fn for_each(
        &mut self,
        path: &CStr,
        mut each: impl FnMut(&mut Self, RawFd, &CStr) -> io::Result<()>,
    ) -> io::Result<io::Result<()>> {
        let mut result = Ok(());
        folder::list(path, |folder, name| {
            result = self.go_on().and_then(|()| each(self, folder, name));
            if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        Ok(result)
    }

    fn go_on(&self) -> io::Result<()> {
        if (self.is_over)() { Err(io::Error::other("it is over")) } else { Ok(()) }
    }
}

/// A path of /proc as a C string.
fn path(path: &str) -> CString {
    CString::new(path).unwrap_or_default()
}

/// The ID that names an entry of /proc, or of a folder of threads or descriptors.
fn number(name: &CStr) -> Option<u32> {
    name.to_str().ok()?.parse().ok()
}

/// 0 if the process is gone.
fn thread_count(pid: u32) -> u64 {
    // The folder has a link for each thread, and two of its own (kernel: proc_task_getattr).
    fs::metadata(format!("/proc/{pid}/task")).map_or(0, |folder| folder.nlink().saturating_sub(2))
}

/// Whether two threads have the same table of descriptors. False if the kernel does not say: both are read then.
fn share_descriptors(one: u32, other: u32) -> bool {
    // include/uapi/linux/kcmp.h
    const KCMP_FILES: libc::c_int = 2;

    // SAFETY: takes numbers only.
    unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_FILES, 0, 0) == 0 }
}

/// The inode in `socket:[4711]`.
fn parse_socket_link(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// The first 16 bytes of a process's argv[0], padded with NULs. `None` if it has none (a kernel thread, a zombie) or is
/// gone.
pub fn read_command(pid: u32) -> Option<[u8; COMM_LEN]> {
    let named = |path: &str| {
        let (mut name, _) = read_start(path)?;
        cut(&mut name);
        (name[0] != 0).then_some(name)
    };
    if let Some(name) = named(&format!("/proc/{pid}/cmdline")) {
        return Some(name);
    }
    // A main thread that ended before others has lost its memory, which holds the arguments.
    if thread_count(pid) <= 1 {
        return None;
    }
    let mut found = None;
    let mut left = MOST_THREADS;
    let _ = folder::list(&path(&format!("/proc/{pid}/task")), |_, name| {
        if let Some(tid) = number(name).filter(|tid| *tid != pid) {
            left -= 1;
            found = named(&format!("/proc/{pid}/task/{tid}/cmdline"));
        }
        if found.is_some() || left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    found
}

/// At most so many threads are asked for the arguments of their process, which all of them share.
const MOST_THREADS: u32 = 4;

/// A process's comm and user ID.
pub fn read_identity(pid: u32) -> Option<([u8; COMM_LEN], u32)> {
    let (mut comm, length) = read_start(&format!("/proc/{pid}/comm"))?;
    end_line(&mut comm[..length]);
    // The real one, as in the probe (bpf_get_current_uid_gid): the folder's owner is the effective one, or root.
    let uid = parse_real_uid(&String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/status")).ok()?))?;
    Some((comm, uid))
}

/// Whether a process has not ended. A zombie has.
pub fn lives(pid: u32) -> bool {
    let status = fs::read(format!("/proc/{pid}/status")).unwrap_or_default();
    let status = String::from_utf8_lossy(&status);
    status.lines().find_map(|line| line.strip_prefix("State:\t")).is_some_and(|state| !state.starts_with(['Z', 'X']))
}

/// The first of the four in `Uid:`. The command cannot fake that line: the kernel escapes its newlines.
fn parse_real_uid(status: &str) -> Option<u32> {
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    ids.split_ascii_whitespace().next()?.parse().ok()
}

/// The first 16 bytes of a file, or all of a shorter one, and their number.
fn read_start(path: &str) -> Option<([u8; COMM_LEN], usize)> {
    let mut name = [0; COMM_LEN];
    let mut filled = 0;
    let mut file = File::open(path).ok()?;
    while filled < COMM_LEN {
        match file.read(&mut name[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    Some((name, filled))
}

/// Clears a name from its first NUL on.
fn cut(name: &mut [u8]) {
    if let Some(length) = name.iter().position(|byte| *byte == 0) {
        name[length..].fill(0);
    }
}

/// Removes the newline that the kernel appends to a comm. One before that is part of the comm.
fn end_line(comm: &mut [u8]) {
    if let Some(end) = comm.last_mut().filter(|last| **last == b'\n') {
        *end = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsRawFd;

    use proptest::prelude::*;

    use super::*;

    fn scanned() -> Owners {
        let mut search = Search { owners: Owners::default(), is_over: &|| false };
        search.scan().unwrap();
        search.owners
    }

    #[test]
    fn a_search_ends_when_all_is_over() {
        let looks = std::cell::Cell::new(0);
        let is_over = || {
            looks.set(looks.get() + 1);
            looks.get() > 10
        };
        assert!(Owners::find(&HolderIterator::new(), &is_over).is_err());
        // One look each for the folders on the way up.
        assert!(looks.get() < 20, "{}", looks.get());
        let known = HashMap::from([(7, std::process::id())]);
        assert_eq!(Owners::find_preferring(&HolderIterator::new(), known, &|| true).count(), 0);
    }

    #[test]
    fn links_of_sockets_only_have_an_inode() {
        assert_eq!(parse_socket_link("socket:[4711]"), Some(4711));
        for other in ["socket:[]", "socket:[47x]", "pipe:[4711]", "socket:4711", "/tmp/socket:[4711]", ""] {
            assert_eq!(parse_socket_link(other), None, "{other}");
        }
    }

    #[test]
    fn a_name_of_any_bytes_is_cut_at_its_end() {
        for (bytes, expected) in [
            (*b"python3\0-c\0x = 1", *b"python3\0\0\0\0\0\0\0\0\0"),
            (*b"\0ython3\0-c\0x = 1", [0; 16]),
            ([0xff; 16], [0xff; 16]),
        ] {
            let mut name = bytes;
            cut(&mut name);
            assert_eq!(name, expected);
        }
    }

    #[test]
    fn a_comm_keeps_its_own_newlines() {
        for (line, comm) in [(b"curl\n".as_slice(), b"curl\0".as_slice()), (b"a\nb\n\n", b"a\nb\n\0"), (b"\n", b"\0")] {
            let mut bytes = line.to_vec();
            end_line(&mut bytes);
            assert_eq!(bytes, comm);
        }
        end_line(&mut []);
    }

    /// Comms of this thread, as read from /proc.
    #[test]
    fn a_comm_of_any_bytes_is_read_as_it_is() {
        let tid = fs::read_link("/proc/thread-self").unwrap().file_name().unwrap().to_str().unwrap().parse().unwrap();
        for name in [c"0123456789abcde", c"a\nb\x1b\xff\x80", c"\n", c""] {
            // SAFETY: a NUL-terminated string.
            unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
            let (comm, _) = read_identity(tid).unwrap();
            let mut expected = [0; COMM_LEN];
            expected[..name.to_bytes().len()].copy_from_slice(name.to_bytes());
            assert_eq!(comm, expected);
        }
    }

    #[test]
    fn the_user_is_the_real_one() {
        assert_eq!(parse_real_uid("Name:\tsudo\nUid:\t1000\t0\t0\t0\nGid:\t5\t5\t5\t5\n"), Some(1000));
        for status in ["", "Uid:", "Uid:\tx\t0\t0\t0", "Name:\tUid:\t1\n"] {
            assert_eq!(parse_real_uid(status), None, "{status:?}");
        }
    }

    proptest! {
        #[test]
        fn hostile_names_end_within_16_bytes(bytes: [u8; COMM_LEN], nul in 0..2 * COMM_LEN) {
            let mut name = bytes;
            if let Some(byte) = name.get_mut(nul) {
                *byte = 0;
            }
            let before = name;
            cut(&mut name);
            let length = before.iter().position(|byte| *byte == 0).unwrap_or(COMM_LEN);
            prop_assert_eq!(&name[..length], &before[..length]);
            prop_assert!(name[length..].iter().all(|byte| *byte == 0));
        }

        #[test]
        fn hostile_links_give_an_inode_only_where_they_name_one(link in "(socket|pipe)?:?\\[?[0-9]{0,22}\\]?.?") {
            let inode = parse_socket_link(&link);
            if let Some(inode) = inode {
                let digits: String = link.chars().filter(char::is_ascii_digit).collect();
                prop_assert_eq!(digits.parse(), Ok(inode));
                prop_assert_eq!(link, format!("socket:[{digits}]"));
            }
        }
    }

    #[test]
    fn a_socket_of_this_process_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let link = fs::read_link(format!("/proc/self/fd/{}", listener.as_raw_fd())).unwrap();
        let inode = parse_socket_link(link.to_str().unwrap()).unwrap();
        assert_eq!(scanned().holder(inode), Some(std::process::id()));
        drop(listener);
        assert_eq!(scanned().holder(inode), None);
    }

    /// Linux gives a thread a table of its own on request.
    #[test]
    fn a_socket_of_a_thread_with_descriptors_of_its_own_is_found() {
        use std::sync::mpsc;

        let (to_thread, orders) = mpsc::channel::<()>();
        let (to_us, inodes) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            // SAFETY: takes a flag, and affects this thread only.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_FILES) }, 0);
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let link = fs::read_link(format!("/proc/thread-self/fd/{}", listener.as_raw_fd())).unwrap();
            to_us.send(parse_socket_link(link.to_str().unwrap()).unwrap()).unwrap();
            let _ = orders.recv();
        });
        let inode = inodes.recv().unwrap();
        assert_eq!(scanned().holder(inode), Some(std::process::id()));
        drop(to_thread);
        thread.join().unwrap();
        assert_eq!(scanned().holder(inode), None);
    }

    /// A listener that only the process's ring still holds; its descriptor is closed.
    #[test]
    fn a_socket_that_only_a_ring_holds_is_found() {
        // include/uapi/linux/io_uring.h
        const REGISTER_FILES: libc::c_long = 2;

        let mut params = [0u32; 30];
        // SAFETY: a number of entries, and the 120 bytes of struct io_uring_params to fill.
        let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, params.as_mut_ptr()) };
        let Ok(ring) = libc::c_int::try_from(ring) else { panic!("{ring}") };
        if ring < 0 {
            return eprintln!("skipped: no io_uring");
        }
        // SAFETY: the kernel has just returned it; it has no other owner.
        let ring = unsafe { OwnedFd::from_raw_fd(ring) };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let link = fs::read_link(format!("/proc/self/fd/{}", listener.as_raw_fd())).unwrap();
        let inode = parse_socket_link(link.to_str().unwrap()).unwrap();
        let files = [-1, listener.as_raw_fd()];
        // SAFETY: so many descriptors, for reading.
        let result = unsafe {
            libc::syscall(libc::SYS_io_uring_register, ring.as_raw_fd(), REGISTER_FILES, files.as_ptr(), files.len())
        };
        assert_eq!(result, 0);
        drop(listener);
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", ring.as_raw_fd())).unwrap();
        if !info.contains("socket:[") {
            return eprintln!("skipped: this kernel does not list the files of a ring");
        }
        assert_eq!(scanned().holder(inode), Some(std::process::id()));
        drop(ring);
    }

    #[test]
    fn a_shared_socket_goes_to_the_younger_process() {
        let mut owners = Owners::default();
        for pid in [100, 300, 200] {
            owners.insert(7, pid).unwrap();
        }
        assert_eq!(owners.holder(7), Some(300));
    }

    #[test]
    fn a_shared_socket_goes_to_the_process_that_is_known_if_it_is_one_of_them() {
        for (known, expected) in [(100, 100), (400, 300)] {
            let mut owners = Owners { preferred: HashMap::from([(7, known)]), ..Owners::default() };
            for pid in [100, 300, 200] {
                owners.insert(7, pid).unwrap();
            }
            assert_eq!(owners.holder(7), Some(expected));
        }
    }

    #[test]
    fn a_command_is_argv0_and_a_kernel_thread_has_none() {
        let argv0 = fs::read("/proc/self/cmdline").unwrap();
        let expected: Vec<u8> = argv0.iter().copied().take_while(|b| *b != 0).take(16).collect();
        let command = read_command(std::process::id()).unwrap();
        assert_eq!(&command[..expected.len()], expected);
        assert_eq!(read_command(2), None);
        assert_eq!(read_command(u32::MAX), None);
    }
}
