//! The rungs whose records go through a ring buffer: a kprobe, and the tracepoint with type information.

use std::cell::Cell;
use std::io::Read;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::slice;
use std::sync::atomic::Ordering;

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{Iter, IterOpts, Link, MapCore, MapFlags, MapMut, OpenObject, ProgramMut};
use zerocopy::IntoBytes;

use super::attached::{Own, Probe, Skeleton};
use super::counts::{MOST_TRACKED, ProbeFds, Variables};
use super::features::kernel_has_kprobes;
use super::kernel_filter;
use super::messages::explain;
use super::object::{ACCEPT_GRAFT, DESTROY, builder, wanted};
use super::owner_maps::OwnerMaps;
use super::perf_event;
use super::refusal::{Refusal, TRACEFS_CAUSE, warn_of_unseen_accepts};
use super::skeletons::core::{OpenTcpEventSkel, TcpEventSkel, TcpEventSkelBuilder};
use super::tracefs::TraceFs;
use super::types::{KernelTypes, OPEN_FILES, SET_STATE};
use crate::config::{ProbeSettings, Rung};
use crate::event::filter::{Filter, Prefix};
use crate::sys::log::{self, Level};
use crate::sys::pid_namespace::PidNamespace;

/// Where a socket fails (since Linux 5.14).
const ERROR_REPORT: &str = "inet_sk_error_report";

/// What is attached beside the main program. It hangs on how accepts are seen: without that, accepted endpoints get
/// their owner by inode, once they close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extras {
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
    pub const LADDER: [Self; 5] =
        [Self::AcceptGraft, Self::AcceptSyscallsAndIoUring, Self::AcceptSyscalls, Self::NoAccept, Self::Nothing];
}

/// What the tries have in common.
pub struct Kernel {
    pub types: KernelTypes,
    /// For the first one: in that of another there may be owners left.
    pub maps: Cell<Option<OwnerMaps>>,
}

/// Attaches with as much of the extras as the kernel lets.
impl<'obj> Probe<'obj> {
    pub(super) fn attach_with_ring(
        rung: Rung,
        settings: &ProbeSettings,
        kernel: &Kernel,
        places: &mut slice::IterMut<'obj, MaybeUninit<OpenObject>>,
    ) -> Result<Self, String> {
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
        let btf = types.path();
        let mut open = open(btf.as_deref(), place).map_err(Refusal::Main)?;
        let progs = &mut open.progs;
        progs.set_state_entry.set_autoload(rung == Rung::Kprobe && !detailed);
        progs.set_state_entry_detailed.set_autoload(rung == Rung::Kprobe && detailed);
        progs.set_state_tracepoint.set_autoload(rung == Rung::TpBtf && !detailed);
        progs.set_state_tracepoint_detailed.set_autoload(rung == Rung::TpBtf && detailed);
        progs.set_state_again.set_autoload(again == Again::AtChanges && !detailed);
        progs.set_state_again_detailed.set_autoload(again == Again::AtChanges && detailed);
        // The look at the end sees who lets go of a socket, too.
        let with_let_go = extras != Extras::Nothing && settings.closes;
        progs.close_at_end.set_autoload(again == Again::AtEnd || with_let_go);
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
        attach_looks(&skeleton, again, detailed, with_let_go, &mut links);
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
}

/// Attaches what looks again, after the main program: it looks at what that one has done.
fn attach_looks(skeleton: &TcpEventSkel<'_>, again: Again, detailed: bool, with_let_go: bool, links: &mut Vec<Link>) {
    let progs = &skeleton.progs;
    let first: Option<(&ProgramMut<'_>, Option<&str>)> = match again {
        Again::AtChanges if detailed => Some((&progs.set_state_again_detailed, None)),
        Again::AtChanges => Some((&progs.set_state_again, None)),
        Again::AtEnd => Some((&progs.close_at_end, Some(ERROR_REPORT))),
        Again::Never => None,
    };
    let second = (again == Again::AtEnd || with_let_go).then_some((&progs.close_at_end, Some(DESTROY)));
    for (program, tracepoint) in first.into_iter().chain(second) {
        let attach = || match tracepoint {
            Some(name) => program.attach_raw_tracepoint(name),
            None => program.attach_trace(),
        };
        match explain(attach) {
            Ok(link) => links.push(link),
            Err(refusal) => {
                log::line(Level::Info, format_args!("the second look was refused: {refusal}"));
                continue;
            }
        }
        if tracepoint == Some(DESTROY) {
            Variables::of(skeleton).sees_let_go.store(1, Ordering::SeqCst);
        }
    }
}

fn open<'obj>(btf: Option<&Path>, place: &'obj mut MaybeUninit<OpenObject>) -> Result<OpenTcpEventSkel<'obj>, String> {
    let obj_builder = builder(btf)?;
    explain(|| TcpEventSkelBuilder { obj_builder }.open(place))
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
    constants.filter = kernel_filter::of(filter);

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
        let key = kernel_filter::key_of(prefix);
        map.update(key.as_bytes(), &[prefix.is_for_ipv4().into()], MapFlags::ANY)?;
    }
    Ok(())
}

/// Runs the iterator once over all open files. Returns its link, for more.
fn adopt(skeleton: &TcpEventSkel<'_>) -> libbpf_rs::Result<OwnedFd> {
    let link = skeleton.progs.adopt.attach_iter_with_opts(IterOpts::None)?;
    let mut iterator = Iter::new(&link)?;
    let mut nothing = [0; 4096];
    while iterator.read(&mut nothing)? > 0 {}
    Ok(link.as_fd().try_clone_to_owned()?)
}
