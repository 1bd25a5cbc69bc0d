//! Loads the BPF program and attaches it by one rung of the ladder, found by trying.

mod counts;
mod fds;
mod instructions;
mod messages;
mod owner_maps;
mod perf;
mod perf_event;
mod remedy;
mod tracepoint;
mod types;

use std::cell::Cell;
use std::io::Read;
use std::mem::{self, ManuallyDrop, MaybeUninit};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::atomic::Ordering;

use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use libbpf_rs::{Iter, IterOpts, Link, MapCore, MapFlags, MapMut, ObjectBuilder, OpenObject, ProgramMut};

pub use self::counts::{MOST_TRACKED, ProbeFds, Variables};
pub use self::fds::BpfFds;
use self::messages::explain;
use self::owner_maps::OwnerMaps;
pub use self::remedy::refused;
use self::remedy::{PERF_EVENTS_REMEDY, SECCOMP_REMEDY, TRACEFS_REMEDY};
use self::tracepoint::TRACEFS_CAUSE;
use self::types::{KERNEL_BTF, KernelTypes, OPEN_FILES, SET_STATE};
use crate::error::Error;
use crate::filter::{Filter, Prefix};
use crate::log::{self, Level};
use crate::own_fd::{Identity, close_those_left, identified, is_whole};
use crate::perf_skeleton::TcpEventPerfSkel;
use crate::pid_namespace::PidNamespace;
use crate::privilege::{self, Capability, FilteredCall};
use crate::settings::{ProbeSettings, Rung};
use crate::skeleton::{OpenTcpEventSkel, TcpEventSkel, TcpEventSkelBuilder};
use crate::tracefs::TraceFs;
use crate::tracepoint_skeleton::TcpEventTracepointSkel;

/// A probe that is attached. Dropping it detaches and unloads everything.
pub struct Probe<'obj> {
    // In the order of their attachment. Detached before the object they belong to is unloaded.
    links: Vec<Link>,
    /// Perf events that the links close.
    events: Vec<RawFd>,
    /// The link of the iterator over all open files.
    holders: Option<OwnedFd>,
    /// Maps and programs.
    skeleton: ManuallyDrop<Skeleton<'obj>>,
    rung: Rung,
    fds: ProbeFds,
    /// What the descriptors of all that was when it was attached.
    own: Own,
}

/// Descriptors that libbpf closes, and what they stand for.
#[derive(Default)]
struct Own {
    links: Vec<(RawFd, Identity)>,
    object: Vec<(RawFd, Identity)>,
}

/// The maps and programs of a rung.
enum Skeleton<'obj> {
    /// Of `bpf/tcp_event.bpf.c`.
    Core(Box<TcpEventSkel<'obj>>),
    /// Of `bpf/tcp_event_perf.bpf.c`.
    Perf(Box<TcpEventPerfSkel<'obj>>),
    /// Of `bpf/tcp_event_tracepoint.bpf.c`.
    Tracepoint(Box<TcpEventTracepointSkel<'obj>>),
}

/// What `accept` calls for the new socket, in the context of the process.
const ACCEPT_GRAFT: &str = "security_sock_graft";

/// Where a socket fails (since Linux 5.14), and where it is destroyed.
const ERROR_REPORT: &str = "inet_sk_error_report";
const DESTROY: &str = "tcp_destroy_sock";

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

/// When it is looked again at what the main program has to do: see `bpf/tcp_event.bpf.c`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Again {
    /// At each change of state.
    AtChanges,
    /// Where a socket fails, and where it is destroyed.
    AtEnd,
    Never,
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
        instructions::take_over();
        let maps = Cell::new(OwnerMaps::begin(settings));
        let kernel = Kernel { types: KernelTypes::read(settings), maps };
        let mut places = places.0.iter_mut();
        for &rung in rungs {
            match Self::attach_rung(rung, settings, &kernel, &mut places) {
                Ok(mut probe) => {
                    log::line(Level::Info, format_args!("attached by {}", rung.name()));
                    probe.own = Own::of(&probe);
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
        kernel: &Kernel,
        places: &mut std::slice::IterMut<'obj, MaybeUninit<OpenObject>>,
    ) -> Result<Self, String> {
        if rung == Rung::Tracepoint {
            return tracepoint::attach(settings, places);
        }
        let types = &kernel.types;
        if rung == Rung::Kprobe && !kernel_has_kprobes() {
            return Err("the kernel has no kprobes (CONFIG_KPROBES)".to_owned());
        }
        if rung == Rung::TpBtf && types.fitting.target(SET_STATE).is_none() {
            let it = if Path::new(KERNEL_BTF).exists() { "tracepoint inet_sock_set_state" } else { "type information" };
            return Err(format!("the kernel shows no {it}"));
        }
        if rung == Rung::Kprobe && !perf::kernel_has_ring_buffer() {
            return perf::attach(settings, types, places);
        }
        // A kernel that cannot do the extras still does the main thing: the last try is without any.
        let mut failure = String::new();
        let mut accept_refusals = Vec::new();
        for extras in Extras::LADDER {
            if extras == Extras::AcceptGraft && !kernel_has_kprobes() {
                continue;
            }
            let place = places.next().ok_or("no place for another try")?;
            let refusal = match Self::try_attach(rung, extras, settings, kernel, place) {
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
        kernel: &Kernel,
        place: &'obj mut MaybeUninit<OpenObject>,
    ) -> Result<Self, Refusal> {
        let types = &kernel.types;
        let by_syscalls = matches!(extras, Extras::AcceptSyscallsAndIoUring | Extras::AcceptSyscalls);
        let by_io_uring = extras == Extras::AcceptSyscallsAndIoUring;
        let with_adopt = extras != Extras::Nothing && types.fitting.target(OPEN_FILES).is_some();
        let detailed = settings.detailed;
        // Where the kernel tells of what becomes of a socket, that is all that the tracepoint's plain program needs, unless it
        // can be preempted.
        let again = if extras == Extras::Nothing || types.fitting.target(SET_STATE).is_none() {
            Again::Never
        } else if !detailed && rung == Rung::TpBtf && !types.preemptible && types.tells_errors {
            Again::AtEnd
        } else {
            Again::AtChanges
        };
        let btf = types.path().or_else(|| settings.btf.clone());
        let mut open = open(btf.as_deref(), place).map_err(Refusal::Main)?;
        let progs = &mut open.progs;
        progs.set_state_entry.set_autoload(rung == Rung::Kprobe && !detailed);
        progs.set_state_entry_detailed.set_autoload(rung == Rung::Kprobe && detailed);
        progs.set_state_tracepoint.set_autoload(rung == Rung::TpBtf && !detailed);
        progs.set_state_tracepoint_detailed.set_autoload(rung == Rung::TpBtf && detailed);
        progs.set_state_again.set_autoload(again == Again::AtChanges && !detailed);
        progs.set_state_again_detailed.set_autoload(again == Again::AtChanges && detailed);
        progs.close_at_end.set_autoload(again == Again::AtEnd);
        progs.accept_graft.set_autoload(extras == Extras::AcceptGraft);
        progs.accept_syscall.set_autoload(by_syscalls);
        progs.accept_io_uring.set_autoload(by_io_uring);
        progs.adopt.set_autoload(with_adopt);
        configure(&mut open, rung, again, settings, kernel).map_err(Refusal::Main)?;
        let mut skeleton = types.fitting.during(|| explain(|| open.load())).map_err(Refusal::Main)?;
        if detailed {
            explain(|| fill_lists(&mut skeleton, &settings.filter)).map_err(Refusal::Main)?;
        }

        let mut links = Vec::new();
        let mut events = Vec::new();
        let progs = &skeleton.progs;
        // Before the main program, so that no connection passes between the two unowned.
        if extras == Extras::AcceptGraft {
            links.push(explain(|| progs.accept_graft.attach_kprobe(false, ACCEPT_GRAFT)).map_err(Refusal::Accept)?);
        }
        if by_syscalls {
            let tracefs = TraceFs::open()
                .map_err(|error| Refusal::Accept(format!("{TRACEFS_CAUSE}: {}", perf_event::errno_name(&error))))?;
            for call in ["sys_exit_accept", "sys_exit_accept4"] {
                let attachment = perf_event::attach(&progs.accept_syscall, &tracefs, "syscalls", call);
                let attachment = attachment.map_err(Refusal::Accept)?;
                links.push(attachment.link);
                events.push(attachment.event);
            }
        }
        if by_io_uring {
            links.push(explain(|| progs.accept_io_uring.attach_trace()).map_err(Refusal::Accept)?);
        }
        let main = match (rung, detailed) {
            (Rung::Kprobe, false) => &progs.set_state_entry,
            (Rung::Kprobe, true) => &progs.set_state_entry_detailed,
            (_, false) => &progs.set_state_tracepoint,
            (_, true) => &progs.set_state_tracepoint_detailed,
        };
        let attach =
            || if rung == Rung::Kprobe { main.attach_kprobe(false, "tcp_set_state") } else { main.attach_trace() };
        let main_link = explain(attach).map_err(Refusal::Main)?;
        let fds = ProbeFds::of(main, &main_link, &skeleton);
        let mut holders = None;
        links.push(main_link);
        // After the main program: they look at what that one has done.
        let looks: &[(&ProgramMut<'_>, Option<&str>)] = match again {
            Again::AtChanges if detailed => &[(&progs.set_state_again_detailed, None)],
            Again::AtChanges => &[(&progs.set_state_again, None)],
            Again::AtEnd => &[(&progs.close_at_end, Some(ERROR_REPORT)), (&progs.close_at_end, Some(DESTROY))],
            Again::Never => &[],
        };
        for (program, tracepoint) in looks {
            let attach = || match tracepoint {
                Some(name) => program.attach_raw_tracepoint(name),
                None => program.attach_trace(),
            };
            match explain(attach) {
                Ok(link) => links.push(link),
                Err(refusal) => log::line(Level::Info, format_args!("the second look was refused: {refusal}")),
            }
        }
        let adopted = if with_adopt { explain(|| adopt(&skeleton)) } else { Err("no iterator over files".to_owned()) };
        match adopted {
            Ok(link) => {
                holders = Some(link);
                Variables::of(&skeleton).adopted.store(1, Ordering::SeqCst);
            }
            Err(refusal) => {
                log::line(Level::Info, format_args!("connections older than the probe have no owner yet: {refusal}"));
            }
        }
        Ok(Self {
            links,
            events,
            holders,
            skeleton: ManuallyDrop::new(Skeleton::Core(Box::new(skeleton))),
            rung,
            fds,
            own: Own::default(),
        })
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

    /// Takes the hooks away. What is in the ring stays readable. Where the host has closed a descriptor of these, it has taken
    /// some away itself: the others are closed, and what libbpf keeps of them is left as it is.
    pub fn detach(&mut self) {
        let own = mem::take(&mut self.own.links);
        if is_whole(&own) {
            // The accept hooks last, for the same reason that they were attached first.
            while self.links.pop().is_some() {}
        } else {
            self.links.drain(..).for_each(mem::forget);
            close_those_left(&own);
        }
    }

    /// The map that the records go through: a ring buffer, or what a perf buffer is made of.
    pub fn records(&self) -> &MapMut<'obj> {
        match &*self.skeleton {
            Skeleton::Core(skeleton) => &skeleton.maps.records,
            Skeleton::Perf(skeleton) => &skeleton.maps.records,
            Skeleton::Tracepoint(skeleton) => &skeleton.maps.records,
        }
    }

    /// Whether they go through a ring buffer.
    pub fn has_ring(&self) -> bool {
        matches!(*self.skeleton, Skeleton::Core(_))
    }

    /// Whether a record of a close has the connection's counters.
    pub fn tells_counters(&self) -> bool {
        !matches!(*self.skeleton, Skeleton::Tracepoint(_))
    }

    /// Whether process IDs are those of the library's own PID namespace, or 0. Else they are the initial one's.
    pub fn tells_own_ids(&self) -> bool {
        !matches!(*self.skeleton, Skeleton::Perf(_)) || PidNamespace::find().is_none()
    }

    /// The program's variables, where it has any.
    pub fn variables(&self) -> Option<Variables<'_>> {
        match &*self.skeleton {
            Skeleton::Core(skeleton) => Some(Variables::of(skeleton)),
            Skeleton::Perf(_) | Skeleton::Tracepoint(_) => None,
        }
    }

    /// All maps and programs.
    fn object(&self) -> &libbpf_rs::Object {
        match &*self.skeleton {
            Skeleton::Core(skeleton) => skeleton.object(),
            Skeleton::Perf(skeleton) => skeleton.object(),
            Skeleton::Tracepoint(skeleton) => skeleton.object(),
        }
    }
}

impl Drop for Probe<'_> {
    fn drop(&mut self) {
        self.detach();
        if is_whole(&self.own.object) {
            // SAFETY: it is not used again.
            unsafe { ManuallyDrop::drop(&mut self.skeleton) };
        } else {
            close_those_left(&self.own.object);
        }
    }
}

impl Own {
    fn of(probe: &Probe<'_>) -> Self {
        Self { links: identified(fds::of_links(probe)), object: identified(fds::of_object(probe)) }
    }
}

/// Places for the objects that [`Probe::attach`] makes.
pub struct Places([MaybeUninit<OpenObject>; Rung::LADDER.len() * Extras::LADDER.len()]);

impl Places {
    /// All empty.
    pub fn new() -> Self {
        Self([const { MaybeUninit::uninit() }; _])
    }
}

/// What the tries have in common.
struct Kernel {
    types: KernelTypes,
    /// For the first one: in that of another there may be owners left.
    maps: Cell<Option<OwnerMaps>>,
}

/// What went wrong in a try.
enum Refusal {
    /// Without it there are no events.
    Main(String),
    /// Without it owners are found less well.
    Accept(String),
}

fn open<'obj>(btf: Option<&Path>, place: &'obj mut MaybeUninit<OpenObject>) -> Result<OpenTcpEventSkel<'obj>, String> {
    let obj_builder = builder(btf)?;
    explain(|| TcpEventSkelBuilder { obj_builder }.open(place))
}

/// Of objects that are fitted to these types, or to the kernel's own.
fn builder(btf: Option<&Path>) -> Result<ObjectBuilder, String> {
    let mut object = ObjectBuilder::default();
    if let Some(btf) = btf {
        explain(|| object.btf_custom_path(btf).map(|_| ()))?;
    }
    Ok(object)
}

/// Which events are wanted: `enum tcp_wanted` of `bpf/tcp_event.h`.
fn wanted(settings: &ProbeSettings) -> u8 {
    u8::from(settings.states) | u8::from(settings.closes) << 1
}

/// Sets what the programs cannot change: constants, and the sizes of maps.
fn configure(
    open: &mut OpenTcpEventSkel<'_>,
    rung: Rung,
    again: Again,
    settings: &ProbeSettings,
    kernel: &Kernel,
) -> Result<(), String> {
    let types = &kernel.types;
    let filter = &settings.filter;
    let constants = open.maps.rodata_data.as_deref_mut().expect("the program has constants");
    constants.main_is_kprobe = rung == Rung::Kprobe;
    constants.second_look = again == Again::AtChanges;
    constants.look_at_end = again == Again::AtEnd;
    constants.is_preemptible = types.preemptible;
    constants.wanted = wanted(settings);
    constants.can_cast = types.casts.is_some();
    [
        constants.type_of_sock,
        constants.type_of_tcp_sock,
        constants.type_of_socket,
        constants.type_of_file,
        constants.type_of_task_struct,
    ] = types.casts.unwrap_or_default();
    constants.pid_namespace = PidNamespace::find().map_or(0, |namespace| namespace.inode);
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
    if types.casts.is_none() {
        explain(|| maps.owner_sets.set_autocreate(false))?;
        explain(|| maps.more_owners.set_max_entries(MOST_TRACKED))?;
    } else if let Some(made) = kernel.maps.take() {
        made.hand_over(maps)?;
    }
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

    let says = |cause| refusals.iter().any(|refusal| refusal.contains(cause));
    if says("perf event") && privilege::seccomp_refuses(FilteredCall::PerfEventOpen) {
        log::line(Level::Warn, format_args!("{LOSS}: {SECCOMP_REMEDY}"));
        return;
    }
    if !says("EACCES") {
        if says(TRACEFS_CAUSE) && !says("EMFILE") {
            log::line(Level::Warn, format_args!("{LOSS}: {TRACEFS_REMEDY}"));
        }
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
    let link = skeleton.progs.adopt.attach_iter_with_opts(IterOpts::None)?;
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::io::{ErrorKind, Read};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;
    use std::time::{Duration, Instant};

    use libbpf_rs::RingBufferBuilder;
    use socket2::SockRef;

    use super::*;
    use crate::decode::{Decoded, decode};

    /// Whether the peer finds a connection closed, or reset.
    #[derive(Clone, Copy, PartialEq)]
    enum Way {
        Fin,
        Reset,
    }

    fn close(way: Way, client: TcpStream, mut server: TcpStream) {
        if way == Way::Reset {
            SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        }
        drop(client);
        let read = server.read(&mut [0]).map_err(|error| error.kind());
        assert_eq!(read, if way == Way::Fin { Ok(0) } else { Err(ErrorKind::ConnectionReset) });
        drop(server);
    }

    fn take_main_away(probe: &mut Probe<'_>) {
        let main = probe.links.iter().position(|link| link.as_fd().as_raw_fd() == probe.fds.main_link).unwrap();
        drop(probe.links.remove(main));
    }

    /// The main program sees nothing (`misses_all`), or a connection's begin, and is taken away before its end.
    fn ends_are_recovered(rung: Rung, detailed: bool, preemptible: bool, misses_all: bool) {
        let settings = ProbeSettings { rung: Some(rung), detailed, closes: true, ..ProbeSettings::default() };
        instructions::take_over();
        let mut types = KernelTypes::read(&settings);
        types.preemptible |= preemptible;
        // What a process does is looked at twice where it can be missed.
        if misses_all && rung == Rung::TpBtf && !types.preemptible {
            return;
        }
        let kernel = Kernel { types, maps: Cell::new(None) };
        let mut places = Places::new();
        let mut probe = match Probe::attach_rung(rung, &settings, &kernel, &mut places.0.iter_mut()) {
            Ok(probe) if probe.has_ring() => probe,
            Ok(_) => return eprintln!("skipped: no second look by a perf buffer"),
            Err(refusal) => return eprintln!("skipped: {refusal}"),
        };

        let by_changes = detailed || rung == Rung::Kprobe || kernel.types.preemptible;
        if misses_all {
            take_main_away(&mut probe);
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connections = [Way::Fin, Way::Reset].map(|way| {
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (way, client, listener.accept().unwrap().0)
        });
        // Of a reset by a process the tracepoint's plain program misses nothing, unless it is preemptible: nobody looks
        // before the kernel has forgotten the addresses.
        let ends = connections.iter().flat_map(|(way, client, server)| {
            [Some(server), (*way == Way::Fin || by_changes).then_some(client)].into_iter().flatten()
        });
        let ends = ends.map(|end| (end.local_addr().unwrap().port(), end.peer_addr().unwrap().port()));
        let mut missing: HashSet<_> = ends.collect();
        let expected = missing.len() as u64;

        if !misses_all {
            take_main_away(&mut probe);
        }
        for (way, client, server) in connections {
            close(way, client, server);
        }

        let read = std::cell::RefCell::new(Vec::new());
        let mut builder = RingBufferBuilder::new();
        let take = |bytes: &[u8]| {
            read.borrow_mut().push(decode(bytes).unwrap());
            0
        };
        builder.add(probe.records(), take).unwrap();
        let buffer = builder.build().unwrap();
        let until = Instant::now() + Duration::from_secs(10);
        while !missing.is_empty() {
            assert!(Instant::now() < until, "by {}: {missing:?} of {expected} did not come", rung.name());
            buffer.consume().unwrap();
            for Decoded { event, .. } in read.take() {
                if missing.remove(&(event.local_port, event.remote_port)) {
                    assert_eq!(event.pid, std::process::id(), "{event:?}");
                } else {
                    let port = listener.local_addr().unwrap().port();
                    assert!(![event.local_port, event.remote_port].contains(&port), "once more: {event:?}");
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(probe.variables().unwrap().recovered.load(Ordering::SeqCst) >= expected);
    }

    #[test]
    fn the_second_look_reports_what_the_main_program_has_missed() {
        for rung in [Rung::Kprobe, Rung::TpBtf] {
            for case in 0..8 {
                ends_are_recovered(rung, case & 1 != 0, case & 2 != 0, case & 4 != 0);
            }
        }
    }
}
