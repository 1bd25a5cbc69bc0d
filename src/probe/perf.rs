//! The first rung for kernels without a ring buffer (before Linux 5.8): its records go through a perf buffer.

use std::mem::{ManuallyDrop, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd};

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, OpenObject};

use super::attached::{Own, Probe, Skeleton};
use super::counts::ProbeFds;
use super::messages::explain;
use super::object::{ACCEPT_GRAFT, FreePlaces, builder, wanted};
use super::perf_event;
use super::refusal::{Part, Refusal, Stage};
use super::remedy::{warn_of_unseen_accepts, warn_of_untold_attempts};
use super::types::KernelTypes;
use crate::config::{ProbeSettings, Rung};
use crate::probe::skeletons::perf::TcpEventPerfSkelBuilder;
use crate::sys::log::{self, Level};

/// Attaches, with the kprobe that sees accepts, and without where that cannot be had.
pub(super) fn attach<'obj>(
    settings: &ProbeSettings,
    types: &KernelTypes,
    places: &mut FreePlaces<'obj>,
) -> Result<Probe<'obj>, Refusal> {
    log::line(Level::Info, "the kernel has no ring buffer: records go through a perf buffer");
    let (probe, refusals) = match try_attach(true, settings, types, places.next()?) {
        Ok(probe) => (probe, Vec::new()),
        Err(refusal) if refusal.part == Part::Accept => {
            log::line(Level::Info, format_args!("accepts are not seen: {refusal}"));
            (try_attach(false, settings, types, places.next()?)?, vec![refusal])
        }
        Err(refusal) => return Err(refusal),
    };
    if !probe.tells_own_ids() {
        log::line(Level::Warn, "events have no process IDs: the kernel tells none of this PID namespace");
    }
    warn_of_unseen_accepts(settings, &refusals);
    warn_of_untold_attempts(settings);
    Ok(probe)
}

fn try_attach<'obj>(
    with_accepts: bool,
    settings: &ProbeSettings,
    types: &KernelTypes,
    place: &'obj mut MaybeUninit<OpenObject>,
) -> Result<Probe<'obj>, Refusal> {
    let btf = types.path();
    let obj_builder = builder(btf.as_deref())?;
    let mut open = explain(Stage::Open, || TcpEventPerfSkelBuilder { obj_builder }.open(place))?;
    open.progs.set_state_entry.set_autoload(!settings.detailed);
    open.progs.set_state_entry_detailed.set_autoload(settings.detailed);
    open.progs.accept_graft.set_autoload(with_accepts);
    let skeleton = explain(Stage::Load, || open.load())?;
    let maps = &skeleton.maps;
    let events = u32::from(wanted(settings)).to_ne_bytes();
    explain(Stage::Fill, || maps.wanted.update(&0u32.to_ne_bytes(), &events, MapFlags::ANY))?;

    let progs = &skeleton.progs;
    let mut links = Vec::new();
    // Before the main program, so that no connection passes between the two unowned.
    if with_accepts {
        links.push(
            explain(Stage::Kprobe, || progs.accept_graft.attach_kprobe(false, ACCEPT_GRAFT))
                .map_err(Refusal::of_accepts)?,
        );
    }
    let mut events = Vec::new();
    match perf_event::open_tracefs() {
        Ok(tracefs) => {
            if let Some(attachment) = perf_event::attach_to_processors(&progs.processors_change, &tracefs) {
                links.push(attachment.link);
                events.push(attachment.event);
            }
        }
        Err(refusal) => {
            log::line(Level::Info, format_args!("{}: {refusal}", perf_event::UNSEEN_PROCESSORS));
        }
    }
    let main = if settings.detailed { &progs.set_state_entry_detailed } else { &progs.set_state_entry };
    let main_link = explain(Stage::Kprobe, || main.attach_kprobe(false, "tcp_set_state"))?;
    let fds = ProbeFds {
        main: main.as_fd().as_raw_fd(),
        main_link: main_link.as_fd().as_raw_fd(),
        owner_sets: None,
        owners: maps.owners.as_fd().as_raw_fd(),
        lost: Some(maps.lost.as_fd().as_raw_fd()),
    };
    links.push(main_link);
    let skeleton = ManuallyDrop::new(Skeleton::Perf(Box::new(skeleton)));
    Ok(Probe { links, events, holders: None, skeleton, variables: None, rung: Rung::Kprobe, fds, own: Own::default() })
}
