//! Loads the BPF program and attaches it by one rung of the ladder, found by trying.

use std::cell::RefCell;
use std::fs;
use std::io::Read;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, AtomicU64};

use libbpf_rs::query::{LinkTypeInfo, PerfEventType};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{Iter, Link, ObjectBuilder, OpenObject, PrintLevel, libbpf_sys};

use crate::descriptors;
use crate::error::{Error, NO_DESCRIPTORS};
use crate::log::{self, Level};
use crate::privilege::{self, Capability};
use crate::settings::{Rung, Settings};
use crate::skeleton::{OpenTcpEventSkel, TcpEventSkel, TcpEventSkelBuilder};

/// A probe that is attached. Dropping it detaches and unloads everything.
pub struct Probe<'obj> {
    // In the order of their attachment. Detached before the object they belong to is unloaded.
    links: Vec<Link>,
    /// Maps and programs.
    pub skeleton: TcpEventSkel<'obj>,
    rung: Rung,
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
    pub fn attach(settings: &Settings, places: &'obj mut Places) -> Result<Self, Error> {
        let rungs: &[Rung] = match &settings.probe {
            Some(rung) => std::slice::from_ref(rung),
            None => &Rung::LADDER,
        };
        let mut refusals = Vec::new();
        let mut places = places.0.iter_mut();
        for &rung in rungs {
            match Self::attach_rung(rung, settings, &mut places) {
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
        settings: &Settings,
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
            let refusal = match Self::try_attach(rung, extras, settings, place) {
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
        settings: &Settings,
        place: &'obj mut MaybeUninit<OpenObject>,
    ) -> Result<Self, Refusal> {
        let by_syscalls = matches!(extras, Extras::AcceptSyscallsAndIoUring | Extras::AcceptSyscalls);
        let by_io_uring = extras == Extras::AcceptSyscallsAndIoUring;
        let mut open = open(settings, place).map_err(Refusal::Main)?;
        open.progs.set_state_entry.set_autoload(rung == Rung::Kprobe);
        open.progs.set_state_tracepoint.set_autoload(rung == Rung::TpBtf);
        open.progs.accept_graft.set_autoload(extras == Extras::AcceptGraft);
        open.progs.accept_syscall.set_autoload(by_syscalls);
        open.progs.accept_io_uring.set_autoload(by_io_uring);
        open.progs.adopt.set_autoload(extras != Extras::Nothing);
        open.progs.set_state_again.set_autoload(extras != Extras::Nothing);
        open.maps.rodata_data.as_deref_mut().expect("the program has constants").main_is_kprobe = rung == Rung::Kprobe;
        let skeleton = explain(|| open.load()).map_err(Refusal::Main)?;

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
        let main = match rung {
            Rung::Kprobe => explain(|| progs.set_state_entry.attach()),
            Rung::TpBtf => explain(|| progs.set_state_tracepoint.attach()),
        };
        links.push(main.map_err(Refusal::Main)?);
        if extras != Extras::Nothing {
            // After the main program: it looks at what that one has done.
            match explain(|| progs.set_state_again.attach()) {
                Ok(link) => links.push(link),
                Err(refusal) => log::line(Level::Info, format_args!("the second look was refused: {refusal}")),
            }
            if let Err(refusal) = explain(|| adopt(&skeleton)) {
                log::line(Level::Info, format_args!("connections older than the probe have no owner yet: {refusal}"));
            }
        }
        Ok(Self { links, skeleton, rung })
    }

    /// Descriptors of the links in force.
    pub fn link_fds(&self) -> impl Iterator<Item = RawFd> {
        self.links.iter().map(|link| link.as_fd().as_raw_fd())
    }

    /// Runs of the main program that the kernel skipped, because it was running already on the same CPU. 0 where the
    /// kernel does not tell (before 5.12; for a kprobe before 6.7). Most are of transitions that do not matter here,
    /// and the second look makes up for the others.
    pub fn skipped_runs(&self) -> u64 {
        // Of the one that is loaded: the other one has no descriptor.
        let program = match self.rung {
            Rung::Kprobe => &self.skeleton.progs.set_state_entry,
            Rung::TpBtf => &self.skeleton.progs.set_state_tracepoint,
        };
        let mut info = libbpf_sys::bpf_prog_info::default();
        let mut length = size_of_val(&info).try_into().unwrap_or(0);
        // SAFETY: `info` is `length` bytes, all of them may be written, and its pointers are null.
        let result =
            unsafe { libbpf_sys::bpf_prog_get_info_by_fd(program.as_fd().as_raw_fd(), &raw mut info, &raw mut length) };
        let of_program = if result == 0 { info.recursion_misses } else { 0 };
        // The accept hook is a kprobe too, and what it misses is no transition.
        let of_link = |link: &Link| match link.info().map(|info| info.info) {
            Ok(LinkTypeInfo::PerfEvent(info)) => match info.event_type {
                PerfEventType::Kprobe { func_name: Some(name), missed, .. } if name == "tcp_set_state" => missed,
                _ => 0,
            },
            _ => 0,
        };
        of_program + self.links.iter().map(of_link).sum::<u64>()
    }

    /// Takes the hooks away. What is in the ring stays readable.
    pub fn detach(&mut self) {
        // The accept hooks last, for the same reason that they were attached first.
        while self.links.pop().is_some() {}
    }

    /// The program's variables. They are shared with the kernel, so they are read and written as atomics only.
    pub fn variables(&self) -> Variables<'_> {
        let bss = self.skeleton.maps.bss_data.as_deref().expect("the program has variables");
        let bss = std::ptr::from_ref(bss).cast_mut();
        // SAFETY: the variables are aligned, mapped for as long as the skeleton lives, and accessed by nobody
        // in this process but through these atomics.
        unsafe {
            Variables {
                reader_sleeps: AtomicU32::from_ptr(&raw mut (*bss).reader_sleeps),
                lost_records: AtomicU64::from_ptr(&raw mut (*bss).lost_records),
                lost_owners: AtomicU64::from_ptr(&raw mut (*bss).lost_owners),
                recovered_closes: AtomicU64::from_ptr(&raw mut (*bss).recovered_closes),
            }
        }
    }
}

/// The variables of `bpf/tcp_event.bpf.c`.
pub struct Variables<'probe> {
    /// 1 asks the program to wake the reader at the next record.
    pub reader_sleeps: &'probe AtomicU32,
    /// Records that found the ring full.
    pub lost_records: &'probe AtomicU64,
    /// Owners that found the map full.
    pub lost_owners: &'probe AtomicU64,
    /// Closes that the main program missed, and the second look reported.
    pub recovered_closes: &'probe AtomicU64,
}

/// Places for the objects of the tries that [`Probe::attach`] makes.
pub struct Places([MaybeUninit<OpenObject>; Rung::LADDER.len() * Extras::LADDER.len()]);

impl Places {
    /// All empty.
    pub fn new() -> Self {
        Self([const { MaybeUninit::uninit() }; _])
    }
}

/// What went wrong in a try.
enum Refusal {
    /// Without it there are no events.
    Main(String),
    /// Without it owners are found less well.
    Accept(String),
}

fn open<'obj>(settings: &Settings, place: &'obj mut MaybeUninit<OpenObject>) -> Result<OpenTcpEventSkel<'obj>, String> {
    let mut object = ObjectBuilder::default();
    if let Some(btf) = &settings.btf {
        explain(|| object.btf_custom_path(btf).map(|_| ()))?;
    }
    explain(|| TcpEventSkelBuilder { obj_builder: object }.open(place))
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

/// Runs the iterator once over all open files.
fn adopt(skeleton: &TcpEventSkel<'_>) -> libbpf_rs::Result<()> {
    let link = skeleton.progs.adopt.attach()?;
    let mut iterator = Iter::new(&link)?;
    let mut nothing = [0; 64];
    while iterator.read(&mut nothing)? > 0 {}
    Ok(())
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
pub fn refused(settings: &Settings, cause: String) -> Error {
    let remedy = remedy(settings, &cause);
    Error::Probe { cause, remedy }
}

/// A kprobe is a perf event.
const PERF_EVENTS_REMEDY: &str = "run as root, grant CAP_SYS_ADMIN, or set kernel.perf_event_paranoid to 2";

/// What the user can most likely do about a kernel that refused every rung.
fn remedy(settings: &Settings, cause: &str) -> &'static str {
    // libbpf goes on where it gets no descriptor for some small thing, and fails for another reason later.
    if cause.contains("EMFILE") || descriptors::are_few() {
        return NO_DESCRIPTORS;
    }
    let lockdown = fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    if privilege::in_user_namespace() {
        "run outside of user namespaces: capabilities in one do not count for BPF"
    } else if privilege::missing(&[Capability::BPF, Capability::PERFMON]).is_some() {
        "run as root, or grant CAP_BPF and CAP_PERFMON (before Linux 5.8: CAP_SYS_ADMIN)"
    } else if cause.contains("EACCES") && privilege::perf_events_are_restricted() {
        PERF_EVENTS_REMEDY
    } else if lockdown.contains("[confidentiality]") {
        "the kernel is locked down (confidentiality): boot it with lockdown=integrity or without lockdown"
    } else if settings.btf.is_none() && !Path::new("/sys/kernel/btf/vmlinux").exists() {
        "the kernel has no type information (CONFIG_DEBUG_INFO_BTF): set TCPEVENT_BTF to a BTF file for it"
    } else if ["EPERM", "ENOMEM"].iter().any(|errno| cause.contains(errno)) && memlock_is_small() {
        "raise the limit of locked memory (ulimit -l), which kernels before 5.11 charge for BPF maps"
    } else {
        "set TCPEVENT_LOG=debug to see what the kernel refused"
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
