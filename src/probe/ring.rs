//! The rungs whose records go through a ring buffer: a kprobe, and the tracepoint with type information.

use std::cell::Cell;
use std::io::Read;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{Iter, IterOpts, Link, OpenObject, ProgramMut};

use super::attached::{Own, Probe, Skeleton};
use super::configure::{configure, fill_lists};
use super::counts::ProbeFds;
use super::extras::{Again, Extras};
use super::features::kernel_has_kprobes;
use super::messages::explain;
use super::object::{ACCEPT_GRAFT, DESTROY, FreePlaces, builder};
use super::owner_maps::OwnerMaps;
use super::perf_event::{self, Attachment};
use super::refusal::{Refusal, Stage};
use super::remedy::{UNSENT_BY_SYSCALL, UNTOLD_UNSENT, warn_of_untold_retries};
use super::skeletons::core::{TcpEventSkel, TcpEventSkelBuilder};
use super::types::{CONNECT_REFUSED, KernelTypes};
use super::variables::SharedVariables;
use crate::config::{ProbeSettings, Rung};
use crate::probe::tracefs::TraceFs;
use crate::sys::log::{self, Level};
use crate::sys::shared::{TCP_HEARD_ALL, TCP_HEARD_NONE, TCP_HEARD_SYSCALL};

/// Where a socket fails (since Linux 5.14).
const ERROR_REPORT: &str = "inet_sk_error_report";

/// What the tries have in common.
pub struct Kernel {
    pub types: KernelTypes,
    /// For the first one: in that of another there may be owners left.
    pub maps: Cell<Option<OwnerMaps>>,
}

/// Attaches with as much of the extras as the kernel lets.
pub(super) fn attach<'obj>(
    rung: Rung,
    settings: &ProbeSettings,
    kernel: &Kernel,
    places: &mut FreePlaces<'obj>,
) -> Result<Probe<'obj>, Refusal> {
    let mut last = None;
    for extras in Extras::LADDER {
        if !extras.may_be_had(&kernel.types) {
            continue;
        }
        match try_attach(rung, extras, settings, kernel, places.next()?) {
            Ok(probe) => return Ok(probe),
            Err(refusal) => {
                log::line(Level::Info, format_args!("{} with {extras:?} refused: {refusal}", rung.name()));
                last = Some(refusal);
            }
        }
    }
    Err(last.expect("without extras it was tried"))
}

fn try_attach<'obj>(
    rung: Rung,
    extras: Extras,
    settings: &ProbeSettings,
    kernel: &Kernel,
    place: &'obj mut MaybeUninit<OpenObject>,
) -> Result<Probe<'obj>, Refusal> {
    let again = extras.look_again(rung, settings, &kernel.types);
    let by_trampolines = extras.tell_unsent(settings, &kernel.types);
    let skeleton = load(rung, extras, again, by_trampolines, settings, kernel, place)?;
    let variables = Arc::new(SharedVariables::map(&skeleton)?);
    let mut links = Vec::new();
    // Before the main program, so that no connection passes between the two unowned.
    links.extend(attach_accepts(&skeleton, extras)?);
    let progs = &skeleton.progs;
    let (main, main_link) = if rung == Rung::Kprobe {
        let main = if settings.detailed { &progs.set_state_entry_detailed } else { &progs.set_state_entry };
        (main, explain(Stage::Kprobe, || main.attach_kprobe(false, "tcp_set_state"))?)
    } else {
        let main = if settings.detailed { &progs.set_state_tracepoint_detailed } else { &progs.set_state_tracepoint };
        (main, explain(Stage::Trace, || main.attach_trace())?)
    };
    let fds = ProbeFds::of(main, &main_link, &skeleton);
    links.push(main_link);
    // After the main program: it looks at what that one has done.
    let (looks, tells_let_go) = attach_looks(&skeleton, again, settings.detailed, extras.tell_let_go(settings));
    links.extend(looks);
    links.extend(attach_retries(&skeleton, settings, extras.tell_retries(settings, &kernel.types)));
    let (mut events, mut heard) = (Vec::new(), TCP_HEARD_NONE);
    if extras.may_tell_unsent(settings) {
        let at_exits;
        (at_exits, heard) = attach_unsent(&skeleton, by_trampolines, &kernel.types);
        links.extend(at_exits.links);
        events.extend(at_exits.event);
    } else if settings.wanted.unsent {
        log::line(
            Level::Warn,
            format_args!("{UNTOLD_UNSENT}: this kernel lets nothing be attached beside the main program"),
        );
    }
    variables.get().heard_connects.store(heard.into(), Ordering::SeqCst);
    if tells_let_go {
        variables.get().sees_let_go.store(1, Ordering::SeqCst);
    }
    let holders = adopt(&skeleton, extras.adopt(&kernel.types))
        .inspect_err(|refusal| {
            log::line(Level::Info, format_args!("connections older than the probe have no owner yet: {refusal}"));
        })
        .ok();
    if holders.is_some() {
        variables.get().adopted.store(1, Ordering::SeqCst);
    }
    let variables = Some(variables);
    let skeleton = ManuallyDrop::new(Skeleton::Core(Box::new(skeleton)));
    Ok(Probe { links, events, holders, skeleton, variables, rung, fds, own: Own::default() })
}

/// Loads the programs that are needed.
fn load<'obj>(
    rung: Rung,
    extras: Extras,
    again: Again,
    by_trampolines: bool,
    settings: &ProbeSettings,
    kernel: &Kernel,
    place: &'obj mut MaybeUninit<OpenObject>,
) -> Result<TcpEventSkel<'obj>, Refusal> {
    let types = &kernel.types;
    let detailed = settings.detailed;
    let btf = types.path();
    let obj_builder = builder(btf.as_deref())?;
    let mut open = explain(Stage::Open, || TcpEventSkelBuilder { obj_builder }.open(place))?;
    let progs = &mut open.progs;
    progs.set_state_entry.set_autoload(rung == Rung::Kprobe && !detailed);
    progs.set_state_entry_detailed.set_autoload(rung == Rung::Kprobe && detailed);
    progs.set_state_tracepoint.set_autoload(rung == Rung::TpBtf && !detailed);
    progs.set_state_tracepoint_detailed.set_autoload(rung == Rung::TpBtf && detailed);
    progs.set_state_again.set_autoload(again == Again::AtChanges && !detailed);
    progs.set_state_again_detailed.set_autoload(again == Again::AtChanges && detailed);
    // The look at the end sees who lets go of a socket, too.
    progs.close_at_end.set_autoload(again == Again::AtEnd || extras.tell_let_go(settings));
    progs.accept_entry.set_autoload(extras == Extras::AcceptEntry);
    progs.accept_graft.set_autoload(extras == Extras::AcceptKprobe);
    progs.adopt.set_autoload(extras.adopt(types));
    progs.syn_again.set_autoload(extras.tell_retries(settings, types));
    progs.connect_exit.set_autoload(by_trampolines);
    // There are kernels without security modules.
    progs.connect_refused.set_autoload(by_trampolines && types.fitting.target(CONNECT_REFUSED).is_some());
    // Trampolines may be refused yet.
    progs.connect_syscall_exit.set_autoload(extras.may_tell_unsent(settings));
    configure(&mut open, rung, again, settings, types, kernel.maps.take())?;
    let mut skeleton = types.fitting.during(|| explain(Stage::Load, || open.load()))?;
    if detailed {
        explain(Stage::Fill, || fill_lists(&mut skeleton, &settings.filter))?;
    }
    Ok(skeleton)
}

/// Attaches what sees accepts, as far as that is among the extras.
fn attach_accepts(skeleton: &TcpEventSkel<'_>, extras: Extras) -> Result<Option<Link>, Refusal> {
    let progs = &skeleton.progs;
    match extras {
        Extras::AcceptEntry => match explain(Stage::Trace, || progs.accept_entry.attach_trace()) {
            Ok(link) => Ok(Some(link)),
            Err(refusal) if kernel_has_kprobes() => Err(refusal),
            // There is no other way: all the rest is loaded.
            Err(refusal) => {
                log::line(Level::Info, format_args!("accepts are not seen: {refusal}"));
                Ok(None)
            }
        },
        Extras::AcceptKprobe => {
            explain(Stage::Kprobe, || progs.accept_graft.attach_kprobe(false, ACCEPT_GRAFT)).map(Some)
        }
        Extras::NoAccept | Extras::Nothing => Ok(None),
    }
}

/// Attaches what looks again, as far as the kernel lets. Also whether it is told who lets go of a socket.
fn attach_looks(skeleton: &TcpEventSkel<'_>, again: Again, detailed: bool, with_let_go: bool) -> (Vec<Link>, bool) {
    let progs = &skeleton.progs;
    let first: Option<(&ProgramMut<'_>, Option<&str>)> = match again {
        Again::AtChanges if detailed => Some((&progs.set_state_again_detailed, None)),
        Again::AtChanges => Some((&progs.set_state_again, None)),
        Again::AtEnd => Some((&progs.close_at_end, Some(ERROR_REPORT))),
        Again::Never => None,
    };
    let second = (again == Again::AtEnd || with_let_go).then_some((&progs.close_at_end, Some(DESTROY)));
    let (mut links, mut tells_let_go) = (Vec::new(), false);
    for (program, tracepoint) in first.into_iter().chain(second) {
        let attach = || match tracepoint {
            Some(name) => program.attach_raw_tracepoint(name),
            None => program.attach_trace(),
        };
        match explain(Stage::Trace, attach) {
            Ok(link) => {
                links.push(link);
                tells_let_go |= tracepoint == Some(DESTROY);
            }
            Err(refusal) => log::line(Level::Info, format_args!("the second look was refused: {refusal}")),
        }
    }
    (links, tells_let_go)
}

/// Attaches what tells of SYNs that are sent again, where that is loaded.
fn attach_retries(skeleton: &TcpEventSkel<'_>, settings: &ProbeSettings, is_loaded: bool) -> Option<Link> {
    let attach = || {
        if !is_loaded {
            return Err(Refusal::new(Stage::Support, "the kernel shows no type of the tracepoint tcp_retransmit_skb"));
        }
        explain(Stage::Trace, || skeleton.progs.syn_again.attach_trace())
    };
    if !settings.wanted.retries {
        return None;
    }
    attach().inspect_err(|refusal| warn_of_untold_retries(settings, refusal)).ok()
}

/// What is attached where the ways to connect return.
#[derive(Default)]
struct Exits {
    links: Vec<Link>,
    /// The perf event of a tracepoint.
    event: Option<RawFd>,
}

/// Attaches what tells of attempts that fail before a SYN: where all ways to connect return, or the system call does. Also which of
/// them are heard.
fn attach_unsent(skeleton: &TcpEventSkel<'_>, by_trampolines: bool, types: &KernelTypes) -> (Exits, u8) {
    let progs = &skeleton.progs;
    let mut why = "this kernel has no trampolines".to_owned();
    if by_trampolines {
        match explain(Stage::Trace, || progs.connect_exit.attach_trace()) {
            Ok(link) => {
                let mut links = vec![link];
                if types.fitting.target(CONNECT_REFUSED).is_some() {
                    match explain(Stage::Trace, || progs.connect_refused.attach_trace()) {
                        Ok(link) => links.push(link),
                        Err(refusal) => log::line(
                            Level::Warn,
                            format_args!("attempts that a security module refuses are not told: {refusal}"),
                        ),
                    }
                }
                return (Exits { links, event: None }, TCP_HEARD_ALL);
            }
            Err(refusal) => why = refusal.to_string(),
        }
    }
    // Elsewhere the registers of a system call are found by a helper that came before casts did.
    if !cfg!(target_arch = "x86_64") && types.casts.is_none() {
        log::line(Level::Warn, format_args!("{UNTOLD_UNSENT}: {why}"));
        return (Exits::default(), TCP_HEARD_NONE);
    }
    let attach =
        |tracefs: TraceFs| perf_event::attach(&progs.connect_syscall_exit, &tracefs, "syscalls", "sys_exit_connect");
    match perf_event::open_tracefs().and_then(attach) {
        Ok(Attachment { link, event }) => {
            log::line(Level::Warn, format_args!("{UNSENT_BY_SYSCALL}: {why}"));
            (Exits { links: vec![link], event: Some(event) }, TCP_HEARD_SYSCALL)
        }
        Err(refusal) => {
            log::line(Level::Warn, format_args!("{UNTOLD_UNSENT}: {why}; {refusal}"));
            (Exits::default(), TCP_HEARD_NONE)
        }
    }
}

/// Runs the iterator once over all open files. Returns its link, for more.
fn adopt(skeleton: &TcpEventSkel<'_>, is_loaded: bool) -> Result<OwnedFd, Refusal> {
    if !is_loaded {
        return Err(Refusal::new(Stage::Support, "no iterator over files"));
    }
    explain(Stage::Trace, || {
        let link = skeleton.progs.adopt.attach_iter_with_opts(IterOpts::None)?;
        let mut iterator = Iter::new(&link)?;
        let mut nothing = [0; 4096];
        while iterator.read(&mut nothing)? > 0 {}
        Ok(link.as_fd().try_clone_to_owned()?)
    })
}
