//! Loads the BPF program and attaches it by one rung of the ladder, found by trying.

use std::cell::RefCell;
use std::ffi::{CStr, c_void};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::{ptr, slice};

use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use libbpf_rs::{
    AsRawLibbpf, Iter, Link, MapCore, MapFlags, MapMut, ObjectBuilder, OpenObject, PrintLevel, Program, libbpf_sys,
};

use crate::btf;
use crate::descriptors;
use crate::error::{Error, NO_DESCRIPTORS};
use crate::filter::{Filter, Prefix};
use crate::log::{self, Level};
use crate::privilege::{self, Capability};
use crate::settings::{ProbeSettings, Rung};
use crate::skeleton::{OpenTcpEventSkel, TcpEventSkel, TcpEventSkelBuilder};

/// The kernel's type information.
const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// A probe that is attached. Dropping it detaches and unloads everything.
pub struct Probe<'obj> {
    // In the order of their attachment. Detached before the object they belong to is unloaded.
    links: Vec<Link>,
    /// The link of the iterator over all open files.
    holders: Option<OwnedFd>,
    /// Maps and programs.
    pub skeleton: TcpEventSkel<'obj>,
    rung: Rung,
    fds: ProbeFds,
}

/// What is attached beside the main program. It hangs on how accepts are seen: without that, accepted endpoints get
/// their owner by inode, once they close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extras {
    /// A kprobe on `security_sock_graft`, and all the rest.
    AcceptGraft,
    /// The exits of the accept system calls, io_uring's completions, and the rest.
    AcceptSyscallsAndIoUring,
    /// The same for kernels whose tracepoint of io_uring has other arguments (6.1).
    AcceptSyscalls,
    /// The rest alone: who holds older endpoints, and the second look.
    NoAccept,
    /// Nothing.
    Nothing,
}

impl Extras {
    /// In the order in which they are tried.
    const LADDER: [Self; 5] =
        [Self::AcceptGraft, Self::AcceptSyscallsAndIoUring, Self::AcceptSyscalls, Self::NoAccept, Self::Nothing];
}

impl<'obj> Probe<'obj> {
    /// Climbs the ladder until a rung holds. The object must be a fresh place for each call.
    pub fn attach(settings: &ProbeSettings, places: &'obj mut Places) -> Result<Self, Error> {
        let rungs: &[Rung] = match &settings.rung {
            Some(rung) => std::slice::from_ref(rung),
            None => &Rung::LADDER,
        };
        let mut refusals = Vec::new();
        let types = KernelTypes::reduced(settings, &mut places.of_types);
        let mut places = places.of_tries.iter_mut();
        for &rung in rungs {
            match Self::attach_rung(rung, settings, types.as_ref(), &mut places) {
                Ok(probe) => {
                    log::line(Level::Info, format_args!("attached by {}", rung.name()));
                    return Ok(probe);
                }
                Err(refusal) => {
                    log::line(Level::Info, format_args!("{} refused: {refusal}", rung.name()));
                    refusals.push(format!("{}: {refusal}", rung.name()));
                }
            }
        }
        Err(refused(settings, refusals.join("; ")))
    }

    fn attach_rung(
        rung: Rung,
        settings: &ProbeSettings,
        types: Option<&KernelTypes>,
        places: &mut std::slice::IterMut<'obj, MaybeUninit<OpenObject>>,
    ) -> Result<Self, String> {
        if rung == Rung::Kprobe && !kernel_has_kprobes() {
            return Err("the kernel has no kprobes (CONFIG_KPROBES)".to_owned());
        }
        // A kernel that cannot do the extras still does the main thing: the last try is without any.
        let mut failure = String::new();
        let mut accept_refusals = Vec::new();
        for extras in Extras::LADDER {
            if extras == Extras::AcceptGraft && !kernel_has_kprobes() {
                continue;
            }
            let place = places.next().ok_or("no place for another try")?;
            let refusal = match Self::try_attach(rung, extras, settings, types, place) {
                Ok(probe) => {
                    // Not before: a start that fails has one line to say.
                    if matches!(extras, Extras::NoAccept | Extras::Nothing) {
                        warn_of_unseen_accepts(&accept_refusals);
                    }
                    return Ok(probe);
                }
                Err(Refusal::Main(refusal)) => refusal,
                Err(Refusal::Accept(refusal)) => {
                    accept_refusals.push(refusal.clone());
                    refusal
                }
            };
            log::line(Level::Info, format_args!("{} with {extras:?} refused: {refusal}", rung.name()));
            failure = refusal;
        }
        Err(failure)
    }

    fn try_attach(
        rung: Rung,
        extras: Extras,
        settings: &ProbeSettings,
        types: Option<&KernelTypes>,
        place: &'obj mut MaybeUninit<OpenObject>,
    ) -> Result<Self, Refusal> {
        let by_syscalls = matches!(extras, Extras::AcceptSyscallsAndIoUring | Extras::AcceptSyscalls);
        let by_io_uring = extras == Extras::AcceptSyscallsAndIoUring;
        let with_again = extras != Extras::Nothing;
        let detailed = settings.detailed;
        let btf = types.map(KernelTypes::path);
        let mut open = open(btf.as_deref().or(settings.btf.as_deref()), place).map_err(Refusal::Main)?;
        let progs = &mut open.progs;
        progs.set_state_entry.set_autoload(rung == Rung::Kprobe && !detailed);
        progs.set_state_entry_detailed.set_autoload(rung == Rung::Kprobe && detailed);
        progs.set_state_tracepoint.set_autoload(rung == Rung::TpBtf && !detailed);
        progs.set_state_tracepoint_detailed.set_autoload(rung == Rung::TpBtf && detailed);
        progs.set_state_again.set_autoload(with_again && !detailed);
        progs.set_state_again_detailed.set_autoload(with_again && detailed);
        progs.accept_graft.set_autoload(extras == Extras::AcceptGraft);
        progs.accept_syscall.set_autoload(by_syscalls);
        progs.accept_io_uring.set_autoload(by_io_uring);
        progs.adopt.set_autoload(with_again);
        configure(&mut open, rung, with_again, settings).map_err(Refusal::Main)?;
        let mut skeleton = explain(|| open.load()).map_err(Refusal::Main)?;
        if detailed {
            explain(|| fill_lists(&mut skeleton, &settings.filter)).map_err(Refusal::Main)?;
        }

        let mut links = Vec::new();
        let progs = &skeleton.progs;
        // Before the main program, so that no connection passes between the two unowned.
        if extras == Extras::AcceptGraft {
            links.push(explain(|| progs.accept_graft.attach()).map_err(Refusal::Accept)?);
        }
        if by_syscalls {
            for call in ["sys_exit_accept", "sys_exit_accept4"] {
                let link =
                    explain(|| progs.accept_syscall.attach_tracepoint(libbpf_rs::TracepointCategory::Syscalls, call));
                links.push(link.map_err(Refusal::Accept)?);
            }
        }
        if by_io_uring {
            links.push(explain(|| progs.accept_io_uring.attach()).map_err(Refusal::Accept)?);
        }
        let main = match (rung, detailed) {
            (Rung::Kprobe, false) => &progs.set_state_entry,
            (Rung::Kprobe, true) => &progs.set_state_entry_detailed,
            (Rung::TpBtf, false) => &progs.set_state_tracepoint,
            (Rung::TpBtf, true) => &progs.set_state_tracepoint_detailed,
        };
        let main_link = explain(|| main.attach()).map_err(Refusal::Main)?;
        let fds = ProbeFds::of(main, &main_link, &skeleton);
        let mut holders = None;
        links.push(main_link);
        if with_again {
            // After the main program: it looks at what that one has done.
            let again = if detailed { &progs.set_state_again_detailed } else { &progs.set_state_again };
            match explain(|| again.attach()) {
                Ok(link) => links.push(link),
                Err(refusal) => log::line(Level::Info, format_args!("the second look was refused: {refusal}")),
            }
            match explain(|| adopt(&skeleton)) {
                Ok(link) => {
                    holders = Some(link);
                    Variables::of(&skeleton).adopted.store(1, Ordering::SeqCst);
                }
                Err(refusal) => {
                    log::line(
                        Level::Info,
                        format_args!("connections older than the probe have no owner yet: {refusal}"),
                    );
                }
            }
        }
        Ok(Self { links, holders, skeleton, rung, fds })
    }

    /// Hands the iterator over all open files to somebody else.
    pub fn take_holders(&mut self) -> Option<OwnedFd> {
        self.holders.take()
    }

    /// The rung in force.
    pub fn rung(&self) -> Rung {
        self.rung
    }

    /// Descriptors that tell what the kernel's side has counted.
    pub fn fds(&self) -> ProbeFds {
        self.fds
    }

    /// Takes the hooks away. What is in the ring stays readable.
    pub fn detach(&mut self) {
        // The accept hooks last, for the same reason that they were attached first.
        while self.links.pop().is_some() {}
    }

    /// The program's variables.
    pub fn variables(&self) -> Variables<'_> {
        Variables::of(&self.skeleton)
    }
}

/// The variables of `bpf/tcp_event.bpf.c`. They are shared with the kernel, so they are read and written as atomics only.
pub struct Variables<'probe> {
    /// 1 asks the program to wake the reader at the next record.
    pub reader_sleeps: &'probe AtomicU32,
    /// 1 tells the iterator that owners of older endpoints are known.
    adopted: &'probe AtomicU32,
    /// Records that found the ring full.
    pub lost_records: &'probe AtomicU64,
    /// Owners that found the map full.
    pub lost_owners: &'probe AtomicU64,
    /// Changes that the main program missed, and the second look reported.
    pub recovered: &'probe AtomicU64,
}

impl<'probe> Variables<'probe> {
    fn of(skeleton: &'probe TcpEventSkel<'_>) -> Self {
        let bss = skeleton.maps.bss_data.as_deref().expect("the program has variables");
        let bss = std::ptr::from_ref(bss).cast_mut();
        // SAFETY: the variables are aligned, mapped for as long as the skeleton lives, and accessed by nobody
        // in this process but through these atomics.
        unsafe {
            Self {
                reader_sleeps: AtomicU32::from_ptr(&raw mut (*bss).reader_sleeps),
                adopted: AtomicU32::from_ptr(&raw mut (*bss).adopted),
                lost_records: AtomicU64::from_ptr(&raw mut (*bss).lost_records),
                lost_owners: AtomicU64::from_ptr(&raw mut (*bss).lost_owners),
                recovered: AtomicU64::from_ptr(&raw mut (*bss).recovered),
            }
        }
    }
}

/// Descriptors of the parts that count. Valid for as long as the probe is attached.
#[derive(Clone, Copy)]
pub struct ProbeFds {
    main: RawFd,
    main_link: RawFd,
    owners: RawFd,
}

impl ProbeFds {
    fn of(main: &Program<'_>, main_link: &Link, skeleton: &TcpEventSkel<'_>) -> Self {
        Self {
            main: main.as_fd().as_raw_fd(),
            main_link: main_link.as_fd().as_raw_fd(),
            owners: skeleton.maps.owners.as_fd().as_raw_fd(),
        }
    }

    /// Runs of the main program that the kernel skipped, because it was running already on the same CPU. 0 where the
    /// kernel does not tell (before 5.12; for a kprobe before 6.7). Most are of transitions that do not matter here,
    /// and the second look makes up for the others.
    pub fn skipped_runs(&self) -> u64 {
        let program = info::<libbpf_sys::bpf_prog_info>(self.main).map_or(0, |info| info.recursion_misses);
        let link = info::<libbpf_sys::bpf_link_info>(self.main_link).map_or(0, |info| {
            // SAFETY: all its parts are plain numbers, and the kernel says which of them it has filled.
            unsafe {
                let event = info.__bindgen_anon_1.perf_event;
                let is_kprobe = info.type_ == libbpf_sys::BPF_LINK_TYPE_PERF_EVENT
                    && event.type_ == libbpf_sys::BPF_PERF_EVENT_KPROBE;
                if is_kprobe { event.__bindgen_anon_1.kprobe.missed } else { 0 }
            }
        });
        program + link
    }

    /// Endpoints in the map of owners. 0 where this thread may not look.
    pub fn tracked(&self) -> u64 {
        const BATCH: u32 = 4096;

        // Of the values nobody wants anything, but the kernel gives them.
        let (mut keys, mut values) = (vec![0u64; BATCH as usize], vec![MaybeUninit::<Owner>::uninit(); BATCH as usize]);
        let mut place = 0u32;
        let mut tracked = 0;
        for first in std::iter::once(true).chain(std::iter::repeat(false)) {
            let mut count = BATCH;
            let from = if first { std::ptr::null_mut() } else { (&raw mut place).cast() };
            // SAFETY: `place`, and `count` keys and values, are there to be filled.
            let result = unsafe {
                libbpf_sys::bpf_map_lookup_batch(
                    self.owners,
                    from,
                    (&raw mut place).cast(),
                    keys.as_mut_ptr().cast(),
                    values.as_mut_ptr().cast(),
                    &raw mut count,
                    std::ptr::null(),
                )
            };
            // The end is an error too, and may come with the last ones.
            let ended = result == -libc::ENOENT;
            if result == 0 || ended {
                tracked += u64::from(count);
            }
            if result != 0 {
                break;
            }
        }
        tracked
    }
}

/// A value of the map of owners.
type Owner = crate::skeleton::types::owner;

/// Endpoints that the map of owners can hold: as in `bpf/tcp_event.bpf.c`.
pub const MOST_TRACKED: u64 = 131_072;

/// What the kernel has to tell of a program or link. All-zero bytes must be a valid `T`.
fn info<T>(fd: RawFd) -> Option<T> {
    let mut info = MaybeUninit::<T>::zeroed();
    let mut length = size_of::<T>().try_into().unwrap_or(0);
    // SAFETY: `info` is `length` bytes, all of them may be written, and its pointers are null.
    let result = unsafe { libbpf_sys::bpf_obj_get_info_by_fd(fd, info.as_mut_ptr().cast(), &raw mut length) };
    // SAFETY: zeroes, or what the kernel has put there.
    (result == 0).then(|| unsafe { info.assume_init() })
}

/// A probe has at most 6 links, 6 programs and 9 maps.
const MOST_FDS: usize = 24;

/// No descriptor.
const NO_FD: RawFd = -1;

/// Descriptors of the links, programs and maps in force, for a forked child to close: they would keep the probe attached,
/// or loaded, after the parent has ended it.
pub struct BpfFds([AtomicI32; MOST_FDS]);

impl BpfFds {
    /// None.
    pub const fn new() -> Self {
        Self([const { AtomicI32::new(NO_FD) }; _])
    }

    /// A probe is attached.
    pub fn note(&self, probe: &Probe<'_>) {
        let links = probe.links.iter().map(|link| link.as_fd().as_raw_fd());
        let links = links.chain(probe.holders.as_ref().map(AsRawFd::as_raw_fd));
        let object = probe.skeleton.object();
        // SAFETY: a program of an object that lives. One that is not loaded has a negative number for a descriptor.
        let programs =
            object.progs().map(|program| unsafe { libbpf_sys::bpf_program__fd(program.as_libbpf_object().as_ptr()) });
        let maps = object.maps().map(|map| map.as_fd().as_raw_fd());
        let fds = links.chain(programs).chain(maps).filter(|fd| *fd >= 0);
        for (place, fd) in self.0.iter().zip(fds) {
            place.store(fd, Ordering::SeqCst);
        }
    }

    /// They are about to be closed.
    pub fn forget(&self) {
        for place in &self.0 {
            place.store(NO_FD, Ordering::SeqCst);
        }
    }

    /// Closes a forked child's copies. Async-signal-safe, as all that runs between fork and exec must be.
    pub fn close_in_child(&self) {
        for place in &self.0 {
            let fd = place.swap(NO_FD, Ordering::SeqCst);
            if fd != NO_FD {
                // SAFETY: in the child nobody but this function knows the descriptor.
                unsafe { libc::close(fd) };
            }
        }
    }
}

/// Places for the objects that [`Probe::attach`] makes.
pub struct Places {
    of_types: MaybeUninit<OpenObject>,
    of_tries: [MaybeUninit<OpenObject>; Rung::LADDER.len() * Extras::LADDER.len()],
}

impl Places {
    /// All empty.
    pub fn new() -> Self {
        Self { of_types: MaybeUninit::uninit(), of_tries: [const { MaybeUninit::uninit() }; _] }
    }
}

/// What went wrong in a try.
enum Refusal {
    /// Without it there are no events.
    Main(String),
    /// Without it owners are found less well.
    Accept(String),
}

/// The kernel's types, reduced to those that the programs have: in a file that has no name.
struct KernelTypes(File);

impl KernelTypes {
    /// `None` where that is not possible, or the user has other types in mind: libbpf takes the kernel's own then, or says
    /// what is wrong.
    fn reduced(settings: &ProbeSettings, place: &mut MaybeUninit<OpenObject>) -> Option<Self> {
        if settings.btf.is_some() {
            return None;
        }
        let names = names_of_types(place)?;
        let kernel = File::open(KERNEL_BTF).ok()?;
        let reduced = match Mapped::of(&kernel) {
            Some(kernel) => btf::reduce(kernel.bytes(), &names)?,
            None => btf::reduce(&fs::read(KERNEL_BTF).ok()?, &names)?,
        };
        // SAFETY: a NUL-terminated name, for /proc/PID/fd.
        let fd = unsafe { libc::memfd_create(c"tcpevent-btf".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return None;
        }
        // SAFETY: the kernel has just given it, to nobody else.
        let mut file = unsafe { File::from_raw_fd(fd) };
        file.write_all(&reduced).ok()?;
        let this = Self(file);
        // Not every container has a /proc.
        this.path().exists().then_some(this)
    }

    fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }
}

/// A file's bytes, without a copy. The kernel's type information can be mapped since Linux 6.16, and never changes.
struct Mapped {
    start: *mut c_void,
    length: usize,
}

impl Mapped {
    /// `None` where the file cannot be mapped.
    fn of(file: &File) -> Option<Self> {
        let length = usize::try_from(file.metadata().ok()?.len()).ok()?;
        // SAFETY: a new mapping, at a place that the kernel chooses.
        let start =
            unsafe { libc::mmap(ptr::null_mut(), length, libc::PROT_READ, libc::MAP_PRIVATE, file.as_raw_fd(), 0) };
        (start != libc::MAP_FAILED).then_some(Self { start, length })
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: mapped for as long as this lives, for reading.
        unsafe { slice::from_raw_parts(self.start.cast(), self.length) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's own.
        unsafe { libc::munmap(self.start, self.length) };
    }
}

/// The names of structures, unions and enumerations that the programs have, without what stands for a version of one.
fn names_of_types(place: &mut MaybeUninit<OpenObject>) -> Option<Vec<Vec<u8>>> {
    let open = open(None, place).ok()?;
    let mut names = Vec::new();
    // SAFETY: the object lives, and so do its types and their names; each ID below the count has a type.
    unsafe {
        let btf = libbpf_sys::bpf_object__btf(open.open_object().as_libbpf_object().as_ptr());
        for id in 1..libbpf_sys::btf__type_cnt(btf) {
            let found = &*libbpf_sys::btf__type_by_id(btf, id);
            let kinds = [libbpf_sys::BTF_KIND_STRUCT, libbpf_sys::BTF_KIND_UNION, libbpf_sys::BTF_KIND_ENUM];
            if found.name_off != 0 && kinds.contains(&(found.info >> 24 & 0x1f)) {
                let name = CStr::from_ptr(libbpf_sys::btf__name_by_offset(btf, found.name_off)).to_bytes();
                let end = name.windows(3).position(|part| part == b"___").unwrap_or(name.len());
                names.push(name[..end].to_vec());
            }
        }
    }
    Some(names)
}

fn open<'obj>(btf: Option<&Path>, place: &'obj mut MaybeUninit<OpenObject>) -> Result<OpenTcpEventSkel<'obj>, String> {
    let mut object = ObjectBuilder::default();
    if let Some(btf) = btf {
        explain(|| object.btf_custom_path(btf).map(|_| ()))?;
    }
    explain(|| TcpEventSkelBuilder { obj_builder: object }.open(place))
}

/// Sets what the programs cannot change: constants, and the sizes of maps.
fn configure(
    open: &mut OpenTcpEventSkel<'_>,
    rung: Rung,
    second_look: bool,
    settings: &ProbeSettings,
) -> Result<(), String> {
    let filter = &settings.filter;
    let constants = open.maps.rodata_data.as_deref_mut().expect("the program has constants");
    constants.main_is_kprobe = rung == Rung::Kprobe;
    constants.second_look = second_look;
    constants.wanted = u8::from(settings.states) | u8::from(settings.closes) << 1;
    let lists = [
        filter.local_ports.is_some(),
        filter.remote_ports.is_some(),
        !filter.local_prefixes.is_empty(),
        !filter.remote_prefixes.is_empty(),
    ];
    let of_kernel = &mut constants.filter;
    of_kernel.cgroup = filter.cgroup.unwrap_or(0);
    of_kernel.netns = filter.netns.unwrap_or(0);
    of_kernel.pid = filter.pid.unwrap_or(0);
    of_kernel.uid = filter.uid.unwrap_or(0);
    of_kernel.by_uid = filter.uid.is_some().into();
    of_kernel.family = filter.family.unwrap_or(0);
    of_kernel.failed_only = filter.failed_only.into();
    of_kernel.lists = lists.iter().rev().fold(0, |bits, list| bits << 1 | u8::from(*list));

    let maps = &mut open.maps;
    if !settings.detailed {
        for map in [&mut maps.port_sets, &mut maps.local_prefixes, &mut maps.remote_prefixes] {
            explain(|| map.set_autocreate(false))?;
        }
    }
    for (map, prefixes) in
        [(&mut maps.local_prefixes, &filter.local_prefixes), (&mut maps.remote_prefixes, &filter.remote_prefixes)]
    {
        let entries = u32::try_from(prefixes.len().max(1)).unwrap_or(u32::MAX);
        explain(|| map.set_max_entries(entries))?;
    }
    Ok(())
}

/// Puts the filter's lists into their maps.
fn fill_lists(skeleton: &mut TcpEventSkel<'_>, filter: &Filter) -> libbpf_rs::Result<()> {
    let maps = &mut skeleton.maps;
    for (set, key) in [(&filter.local_ports, 0u32), (&filter.remote_ports, 1)] {
        if let Some(set) = set {
            maps.port_sets.update(&key.to_ne_bytes(), set.bits(), MapFlags::ANY)?;
        }
    }
    fill_prefixes(&maps.local_prefixes, &filter.local_prefixes)?;
    fill_prefixes(&maps.remote_prefixes, &filter.remote_prefixes)
}

fn fill_prefixes(map: &MapMut<'_>, prefixes: &[Prefix]) -> libbpf_rs::Result<()> {
    for prefix in prefixes {
        let mut key = [0; 20];
        key[..4].copy_from_slice(&u32::from(prefix.length).to_ne_bytes());
        key[4..].copy_from_slice(&prefix.addr);
        map.update(&key, &[prefix.is_for_ipv4().into()], MapFlags::ANY)?;
    }
    Ok(())
}

/// Accepts are not seen, for these reasons. Where it is for want of privilege, that is worth a warning.
fn warn_of_unseen_accepts(refusals: &[String]) {
    const LOSS: &str = "accepts are not seen, and a connection that its peer resets may come without owner";

    if !refusals.iter().any(|refusal| refusal.contains("EACCES")) {
        return;
    }
    if privilege::perf_events_are_restricted() {
        log::line(Level::Warn, format_args!("{LOSS}: {PERF_EVENTS_REMEDY}"));
    } else {
        // The system calls' tracepoints are found through tracefs, which is root's own.
        privilege::warn_of_loss(LOSS, &[Capability::DAC_READ_SEARCH]);
    }
}

/// Runs the iterator once over all open files. Returns its link, for more.
fn adopt(skeleton: &TcpEventSkel<'_>) -> libbpf_rs::Result<OwnedFd> {
    let link = skeleton.progs.adopt.attach()?;
    let mut iterator = Iter::new(&link)?;
    let mut nothing = [0; 4096];
    while iterator.read(&mut nothing)? > 0 {}
    Ok(link.as_fd().try_clone_to_owned()?)
}

/// A fact about the kernel, to save a load that would be in vain: either way of making a kprobe is there.
fn kernel_has_kprobes() -> bool {
    Path::new("/sys/bus/event_source/devices/kprobe/type").exists()
        || ["/sys/kernel/tracing/kprobe_events", "/sys/kernel/debug/tracing/kprobe_events"]
            .iter()
            .any(|path| Path::new(path).exists())
}

thread_local! {
    /// The last warning of libbpf in this thread: more telling than the errno it returns.
    static LAST_WARNING: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Sends libbpf's messages where ours go. The callback is that of the libbpf inside this library: another one in the
/// same process has its own.
fn take_over_messages() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        libbpf_rs::set_print(Some((PrintLevel::Debug, |level, message| {
            let message = message.trim_end();
            log::line(Level::Debug, message);
            if level == PrintLevel::Warn {
                let first = message.lines().next().unwrap_or_default();
                let text = first.strip_prefix("libbpf: ").unwrap_or(first).to_owned();
                LAST_WARNING.with_borrow_mut(|last| {
                    // The first warning of a call is the cause, those after it are consequences.
                    last.get_or_insert(text);
                });
            }
        })));
    });
}

/// Calls libbpf, and tells what it has to say about a failure.
fn explain<T>(call: impl FnOnce() -> libbpf_rs::Result<T>) -> Result<T, String> {
    take_over_messages();
    LAST_WARNING.take();
    call().map_err(|error| match LAST_WARNING.take() {
        Some(warning) => warning,
        None => error.to_string(),
    })
}

/// The error for a cause, with its remedy.
pub fn refused(settings: &ProbeSettings, cause: String) -> Error {
    let (remedy, errno) = remedy(settings, &cause);
    Error::Probe { cause, remedy, errno }
}

/// A kprobe is a perf event.
const PERF_EVENTS_REMEDY: &str = "run as root, grant CAP_SYS_ADMIN, or set kernel.perf_event_paranoid to 2";

/// What the user can most likely do about a kernel that refused every rung, and the errno that says so in short.
fn remedy(settings: &ProbeSettings, cause: &str) -> (&'static str, i32) {
    // libbpf goes on where it gets no descriptor for some small thing, and fails for another reason later.
    if cause.contains("EMFILE") || descriptors::are_few() {
        return (NO_DESCRIPTORS, libc::EMFILE);
    }
    let lockdown = fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    if privilege::in_user_namespace() {
        ("run outside of user namespaces: capabilities in one do not count for BPF", libc::EPERM)
    } else if privilege::missing(&[Capability::BPF, Capability::PERFMON]).is_some() {
        ("run as root, or grant CAP_BPF and CAP_PERFMON (before Linux 5.8: CAP_SYS_ADMIN)", libc::EPERM)
    } else if cause.contains("EACCES") && privilege::perf_events_are_restricted() {
        (PERF_EVENTS_REMEDY, libc::EPERM)
    } else if lockdown.contains("[confidentiality]") {
        let remedy = "the kernel is locked down (confidentiality): boot it with lockdown=integrity or without lockdown";
        (remedy, libc::EPERM)
    } else if settings.btf.is_none() && !Path::new(KERNEL_BTF).exists() {
        let remedy =
            "the kernel has no type information (CONFIG_DEBUG_INFO_BTF): set TCPEVENT_BTF to a BTF file for it";
        (remedy, libc::EOPNOTSUPP)
    } else if ["EPERM", "ENOMEM"].iter().any(|errno| cause.contains(errno)) && memlock_is_small() {
        let remedy = "raise the limit of locked memory (ulimit -l), which kernels before 5.11 charge for BPF maps";
        (remedy, libc::ENOMEM)
    } else {
        ("set TCPEVENT_LOG=debug to see what the kernel refused", libc::EOPNOTSUPP)
    }
}

/// Below what the maps take.
fn memlock_is_small() -> bool {
    const ENOUGH: libc::rlim_t = 64 << 20;
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a valid rlimit to fill.
    let got = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
    got == 0 && limit.rlim_cur < ENOUGH
}
