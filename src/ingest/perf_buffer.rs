//! A perf buffer: a ring of records for each processor, as kernels before 5.8 have it. libbpf's would do, but for processors that
//! are switched off: the kernel takes their perf events away for good, and libbpf cannot open a single one anew.

use std::fs;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use libbpf_rs::libbpf_sys;

use crate::sys::own_fd::{Identity, OwnFd};

/// What a ring has.
#[derive(Debug, PartialEq, Eq)]
pub enum Entry<'ring> {
    /// What a program has written, and some bytes behind it that mean nothing.
    Record(&'ring [u8]),
    /// So many records found the ring full.
    Lost(u64),
}

/// The rings of all processors.
pub struct PerfBuffer {
    /// The map by which the program finds them, and what its descriptor stands for.
    map: RawFd,
    map_identity: Option<Identity>,
    pages: usize,
    epoll: OwnFd,
    rings: Vec<Ring>,
    /// The entry that is being read: in its ring it may go on at the start.
    entry: Vec<u8>,
}

impl PerfBuffer {
    /// Opens a ring for each processor that is switched on, of so many pages: a power of two.
    pub fn new(map: RawFd, pages: usize) -> io::Result<Self> {
        // SAFETY: no pointers, and a descriptor that it returns is nobody else's.
        let epoll = unsafe { owned(libc::epoll_create1(libc::EPOLL_CLOEXEC).into()) }?;
        let mut buffer = Self {
            map,
            map_identity: Identity::of(map),
            pages,
            epoll: OwnFd::new(epoll),
            rings: Vec::new(),
            entry: Vec::new(),
        };
        let opened = buffer.open_all();
        buffer.epoll.changed();
        opened.map(|_| buffer)
    }

    /// Readable where there is a record.
    pub fn epoll_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// All descriptors.
    pub fn fds(&self) -> impl Iterator<Item = RawFd> {
        self.rings.iter().map(|ring| ring.event.as_raw_fd()).chain([self.epoll_fd()])
    }

    /// Hands out all that is there.
    pub fn read(&mut self, mut take: impl FnMut(Entry<'_>)) {
        for ring in &self.rings {
            ring.read(&mut self.entry, &mut take);
        }
    }

    /// Opens a ring for each processor that is switched on and has none in which the kernel writes: it has been switched off
    /// meanwhile, or was before. Hands out what is left in the others, and gives the processors. Takes a while.
    pub fn open_missing(&mut self, mut take: impl FnMut(Entry<'_>)) -> io::Result<Vec<u32>> {
        // A descriptor that the host has put in the place of ours is not touched.
        if !self.epoll.is_ours() || !self.map_identity.is_some_and(|identity| identity.is_of(self.map)) {
            return Ok(Vec::new());
        }
        let opened = self.replace(&mut take);
        self.epoll.changed();
        opened
    }

    fn replace(&mut self, take: &mut impl FnMut(Entry<'_>)) -> io::Result<Vec<u32>> {
        /// More than two ticks of any kernel's clock.
        const A_WHILE: Duration = Duration::from_millis(21);

        let before: Vec<_> = self.rings.iter().map(Ring::time_in_force).collect();
        thread::sleep(A_WHILE);
        let mut before = before.into_iter();
        let entry = &mut self.entry;
        self.rings.retain(|ring| {
            // The time of an event that the kernel has taken away stands still.
            let is_in_force = before.next().is_some_and(|time| time != ring.time_in_force());
            if !is_in_force {
                ring.read(entry, take);
            }
            is_in_force
        });
        self.open_all()
    }

    /// Opens one for each processor that is switched on and has none. Gives the processors.
    fn open_all(&mut self) -> io::Result<Vec<u32>> {
        let mut opened = Vec::new();
        for processor in processors_on()? {
            if self.rings.iter().any(|ring| ring.processor == processor) {
                continue;
            }
            match self.open(processor) {
                Ok(()) => opened.push(processor),
                // It is on its way, there or back, and will be heard of again.
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(opened)
    }

    fn open(&mut self, processor: u32) -> io::Result<()> {
        let ring = Ring::open(processor, self.pages)?;
        let fd = ring.event.as_raw_fd();
        let mut event =
            libc::epoll_event { events: u32::try_from(libc::EPOLLIN).unwrap_or_default(), u64: processor.into() };
        // SAFETY: open descriptors and a valid event.
        if unsafe { libc::epoll_ctl(self.epoll_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a key and a value of the map's sizes.
        let result = unsafe {
            libbpf_sys::bpf_map_update_elem(self.map, (&raw const processor).cast(), (&raw const fd).cast(), 0)
        };
        if result != 0 {
            return Err(io::Error::from_raw_os_error(-result));
        }
        self.rings.push(ring);
        Ok(())
    }
}

/// The ring of one processor, mapped.
struct Ring {
    processor: u32,
    event: OwnFd,
    /// A page of `struct perf_event_mmap_page`, and then the ring.
    start: NonNull<u8>,
    page: usize,
    bytes: usize,
}

// SAFETY: the mapping belongs to the process, and whoever has this value alone reads it.
unsafe impl Send for Ring {}

impl Ring {
    fn open(processor: u32, pages: usize) -> io::Result<Self> {
        // include/uapi/linux/perf_event.h: the first version of struct perf_event_attr.
        #[repr(C)]
        #[derive(Default)]
        struct Attributes {
            kind: u32,
            size: u32,
            config: u64,
            sample_period: u64,
            sample_type: u64,
            read_format: u64,
            flags: u64,
            wakeup_events: u32,
            breakpoint_type: u32,
            breakpoint: u64,
        }
        const PERF_TYPE_SOFTWARE: u32 = 1;
        const PERF_COUNT_SW_BPF_OUTPUT: u64 = 10;
        const PERF_SAMPLE_RAW: u64 = 1 << 10;
        const PERF_FORMAT_TOTAL_TIME_ENABLED: u64 = 1;
        const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 1 << 3;
        const EVERY_PROCESS: libc::pid_t = -1;
        const NO_GROUP: RawFd = -1;

        let attributes = Attributes {
            kind: PERF_TYPE_SOFTWARE,
            size: size_of::<Attributes>().try_into().unwrap_or(0),
            config: PERF_COUNT_SW_BPF_OUTPUT,
            sample_type: PERF_SAMPLE_RAW,
            read_format: PERF_FORMAT_TOTAL_TIME_ENABLED,
            wakeup_events: 1,
            ..Attributes::default()
        };
        // SAFETY: attributes of the size that they say, and numbers; a descriptor that it returns is nobody else's.
        let event = unsafe {
            let attributes = &raw const attributes;
            let flags = PERF_FLAG_FD_CLOEXEC;
            owned(libc::syscall(libc::SYS_perf_event_open, attributes, EVERY_PROCESS, processor, NO_GROUP, flags))
        }?;
        // SAFETY: a number, for which there is always an answer.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
        let bytes = pages * page;
        // SAFETY: a new mapping, at a place that the kernel chooses.
        let start = unsafe {
            let (access, fd) = (libc::PROT_READ | libc::PROT_WRITE, event.as_raw_fd());
            libc::mmap(ptr::null_mut(), page + bytes, access, libc::MAP_SHARED, fd, 0)
        };
        match NonNull::new(start.cast::<u8>()) {
            Some(start) if start.as_ptr().cast() != libc::MAP_FAILED => {
                Ok(Self { processor, event: OwnFd::new(event), start, page, bytes })
            }
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// For how long the kernel has had the event in force, in nanoseconds. `None` where the host has closed it.
    fn time_in_force(&self) -> Option<u64> {
        if !self.event.is_ours() {
            return None;
        }
        let mut values = [0u64; 2];
        // SAFETY: room for so many bytes.
        let length =
            unsafe { libc::read(self.event.as_raw_fd(), values.as_mut_ptr().cast(), mem::size_of_val(&values)) };
        (length > 0).then_some(values[1])
    }

    /// A number of `struct perf_event_mmap_page`, which the kernel reads and writes meanwhile.
    fn number(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: within the first page of the mapping, aligned, and nobody accesses it but as an atomic.
        unsafe { AtomicU64::from_ptr(self.start.as_ptr().add(offset).cast()) }
    }

    fn read(&self, entry: &mut Vec<u8>, take: &mut impl FnMut(Entry<'_>)) {
        // Of struct perf_event_mmap_page: data_head, up to which the kernel has written, and data_tail, up to which it has been
        // read.
        const HEAD: usize = 1024;
        const TAIL: usize = 1032;
        // Of struct perf_event_header: type, misc, size.
        const HEADER: usize = 8;

        let head = self.number(HEAD).load(Ordering::Acquire);
        let mut tail = self.number(TAIL).load(Ordering::Relaxed);
        while tail != head {
            self.copy(tail, HEADER, entry);
            let size =
                entry.get(6..HEADER).and_then(|size| size.first_chunk()).map_or(0, |size| u16::from_ne_bytes(*size));
            if usize::from(size) < HEADER || u64::from(size) > head.wrapping_sub(tail) {
                // Not the kernel's: somebody has written into the ring.
                tail = head;
                break;
            }
            self.copy(tail, size.into(), entry);
            if let Some(found) = Entry::parse(entry) {
                take(found);
            }
            tail = tail.wrapping_add(size.into());
        }
        self.number(TAIL).store(tail, Ordering::Release);
    }

    /// Copies what is at a position. Beyond the end the ring goes on at its start.
    fn copy(&self, position: u64, length: usize, to: &mut Vec<u8>) {
        let length = length.min(self.bytes);
        let at = usize::try_from(position % self.bytes as u64).unwrap_or(0);
        let first = length.min(self.bytes - at);
        to.clear();
        for (at, length) in [(at, first), (0, length - first)] {
            // SAFETY: within the ring; the kernel writes nothing there before it has been read.
            to.extend_from_slice(unsafe {
                std::slice::from_raw_parts(self.start.as_ptr().add(self.page + at), length)
            });
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.page + self.bytes) };
    }
}

impl<'ring> Entry<'ring> {
    /// `None` for what is neither of the two.
    fn parse(entry: &'ring [u8]) -> Option<Self> {
        const PERF_RECORD_LOST: u32 = 2;
        const PERF_RECORD_SAMPLE: u32 = 9;

        let word = |at: usize| Some(u32::from_ne_bytes(*entry.get(at..)?.first_chunk()?));
        match word(0)? {
            // Its size, with the bytes behind it, and the record.
            PERF_RECORD_SAMPLE => {
                let size = usize::try_from(word(8)?).ok()?;
                Some(Self::Record(entry.get(12..)?.get(..size)?))
            }
            // A number, and how many.
            PERF_RECORD_LOST => Some(Self::Lost(u64::from_ne_bytes(*entry.get(16..)?.first_chunk()?))),
            _ => None,
        }
    }
}

/// A descriptor, or the error that a system call has left.
///
/// # Safety
///
/// Where it is none of the system call's, it is nobody else's.
unsafe fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    match RawFd::try_from(result) {
        // SAFETY: the caller's.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The processors that are switched on.
pub fn processors_on() -> io::Result<Vec<u32>> {
    let text = fs::read_to_string("/sys/devices/system/cpu/online")?;
    parse_processors(&text).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// As in `0-3,5`.
fn parse_processors(text: &str) -> Option<Vec<u32>> {
    let mut processors = Vec::new();
    for range in text.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        processors.extend(first.parse::<u32>().ok()?..=last.parse().ok()?);
    }
    Some(processors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_what_the_kernel_says() {
        assert_eq!(parse_processors("0\n"), Some(vec![0]));
        assert_eq!(parse_processors("0-1,3,6-7\n"), Some(vec![0, 1, 3, 6, 7]));
        assert_eq!(parse_processors(""), None);
        assert_eq!(parse_processors("0-x"), None);
    }

    #[test]
    fn entries_are_records_or_counts() {
        let header =
            |kind: u32, size: u16| [kind.to_ne_bytes(), [[0; 2], size.to_ne_bytes()].concat().try_into().unwrap()];
        let record = [header(9, 24).concat(), 12u32.to_ne_bytes().to_vec(), b"twelve bytes".to_vec()].concat();
        assert_eq!(Entry::parse(&record), Some(Entry::Record(b"twelve bytes")));
        let lost = [header(2, 24).concat(), 7u64.to_ne_bytes().to_vec(), 4711u64.to_ne_bytes().to_vec()].concat();
        assert_eq!(Entry::parse(&lost), Some(Entry::Lost(4711)));
        for length in 0..record.len() {
            assert_eq!(Entry::parse(&record[..length]), None);
        }
        assert_eq!(Entry::parse(&header(10, 8).concat()), None);
    }

    /// Of the kernel, by trial. Whether its program writes there is for the live tests.
    #[test]
    fn a_processor_that_was_switched_off_gets_another_ring() {
        let last = *processors_on().unwrap().last().unwrap();
        let switch = format!("/sys/devices/system/cpu/cpu{last}/online");
        // SAFETY: the kind of a map, its sizes, and neither name nor options.
        let map = unsafe {
            let kind = libbpf_sys::BPF_MAP_TYPE_PERF_EVENT_ARRAY;
            owned(libbpf_sys::bpf_map_create(kind, ptr::null(), 4, 4, last + 1, ptr::null()).into()).unwrap()
        };
        let mut buffer = PerfBuffer::new(map.as_raw_fd(), 1).unwrap();
        let all = processors_on().unwrap();
        let with_rings = |buffer: &PerfBuffer| {
            let mut processors: Vec<_> = buffer.rings.iter().map(|ring| ring.processor).collect();
            processors.sort_unstable();
            processors
        };
        assert_eq!(buffer.open_missing(|_| {}).unwrap(), Vec::<u32>::new());
        assert_eq!(with_rings(&buffer), all);
        if last == 0 || fs::write(&switch, "0").is_err() {
            return eprintln!("skipped: processor {last} cannot be switched off");
        }
        let opened_while_off = buffer.open_missing(|_| {});
        let while_off = with_rings(&buffer);
        fs::write(&switch, "1").unwrap();
        assert_eq!(opened_while_off.unwrap(), Vec::<u32>::new());
        assert_eq!(while_off, all[..all.len() - 1]);
        assert_eq!(buffer.open_missing(|_| {}).unwrap(), [last]);
        assert_eq!(with_rings(&buffer), all);
        assert_eq!(buffer.open_missing(|_| {}).unwrap(), Vec::<u32>::new());
    }

    /// A ring without a kernel.
    #[test]
    fn a_record_may_go_on_at_the_start_of_its_ring() {
        const PAGE: usize = 4096;
        const BYTES: usize = 64;
        // SAFETY: a new mapping, which the ring unmaps.
        let start = unsafe {
            let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            libc::mmap(ptr::null_mut(), PAGE + BYTES, access, flags, -1, 0)
        };
        let event = OwnFd::new(crate::sys::wake::new_eventfd(rustix::event::EventfdFlags::empty()).unwrap());
        let ring = Ring { processor: 0, event, start: NonNull::new(start.cast()).unwrap(), page: PAGE, bytes: BYTES };
        let record = |number: u8| {
            let mut record = [0; 24];
            record[..4].copy_from_slice(&9u32.to_ne_bytes());
            record[6..8].copy_from_slice(&24u16.to_ne_bytes());
            record[8..12].copy_from_slice(&12u32.to_ne_bytes());
            record[12..].fill(number);
            record
        };
        let mut head = 0;
        for number in 0..8 {
            for byte in record(number) {
                // SAFETY: within the ring, which nobody reads just now.
                unsafe { ring.start.as_ptr().add(PAGE + head % BYTES).write(byte) };
                head += 1;
            }
            ring.number(1024).store(head as u64, Ordering::Release);
            let mut found = Vec::new();
            ring.read(&mut Vec::new(), &mut |entry| match entry {
                Entry::Record(bytes) => found.push(bytes.to_vec()),
                Entry::Lost(_) => panic!("nothing was lost"),
            });
            assert_eq!(found, [vec![number; 12]]);
            assert_eq!(ring.number(1032).load(Ordering::Relaxed), head as u64);
        }
    }
}
