//! The first rung for kernels without a ring buffer (before Linux 5.8): its records go through a perf buffer.

use std::mem::{ManuallyDrop, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd};

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, OpenObject};

use super::attached::{Own, Probe, Skeleton};
use super::counts::ProbeFds;
use super::messages::explain;
use super::object::{ACCEPT_GRAFT, builder, wanted};
use super::perf_event;
use super::refusal::{Refusal, warn_of_unseen_accepts};
use super::tracefs::TraceFs;
use super::types::KernelTypes;
use crate::config::{ProbeSettings, Rung};
use crate::probe::skeletons::perf::TcpEventPerfSkelBuilder;
use crate::sys::log::{self, Level};

/// Attaches, with the kprobe that sees accepts, and without where that cannot be had.
pub(super) fn attach<'obj>(
    settings: &ProbeSettings,
    types: &KernelTypes,
    places: &mut std::slice::IterMut<'obj, MaybeUninit<OpenObject>>,
) -> Result<Probe<'obj>, String> {
    log::line(Level::Info, "the kernel has no ring buffer: records go through a perf buffer");
    let mut accept_refusals = Vec::new();
    for with_accepts in [true, false] {
        let place = places.next().ok_or("no place for another try")?;
        match try_attach(with_accepts, settings, types, place) {
            Ok(probe) => {
                if !probe.tells_own_ids() {
                    log::line(Level::Warn, "events have no process IDs: the kernel tells none of this PID namespace");
                }
                if !with_accepts {
                    warn_of_unseen_accepts(&accept_refusals);
                }
                return Ok(probe);
            }
            Err(Refusal::Main(refusal)) => return Err(refusal),
            Err(Refusal::Accept(refusal)) => {
                log::line(Level::Info, format_args!("accepts are not seen: {refusal}"));
                accept_refusals.push(refusal);
            }
        }
    }
    Err(accept_refusals.pop().unwrap_or_default())
}

fn try_attach<'obj>(
    with_accepts: bool,
    settings: &ProbeSettings,
    types: &KernelTypes,
    place: &'obj mut MaybeUninit<OpenObject>,
) -> Result<Probe<'obj>, Refusal> {
    let btf = types.path();
    let obj_builder = builder(btf.as_deref()).map_err(Refusal::Main)?;
    let mut open = explain(|| TcpEventPerfSkelBuilder { obj_builder }.open(place)).map_err(Refusal::Main)?;
    open.progs.set_state_entry.set_autoload(!settings.detailed);
    open.progs.set_state_entry_detailed.set_autoload(settings.detailed);
    open.progs.accept_graft.set_autoload(with_accepts);
    let skeleton = explain(|| open.load()).map_err(Refusal::Main)?;
    let maps = &skeleton.maps;
    let events = u32::from(wanted(settings)).to_ne_bytes();
    explain(|| maps.wanted.update(&0u32.to_ne_bytes(), &events, MapFlags::ANY)).map_err(Refusal::Main)?;

    let progs = &skeleton.progs;
    let mut links = Vec::new();
    // Before the main program, so that no connection passes between the two unowned.
    if with_accepts {
        links.push(explain(|| progs.accept_graft.attach_kprobe(false, ACCEPT_GRAFT)).map_err(Refusal::Accept)?);
    }
    let mut events = Vec::new();
    match TraceFs::open() {
        Ok(tracefs) => {
            if let Some(attachment) = perf_event::attach_to_processors(&progs.processors_change, &tracefs) {
                links.push(attachment.link);
                events.push(attachment.event);
            }
        }
        Err(error) => {
            log::line(
                Level::Info,
                format_args!("{}: {}", perf_event::UNSEEN_PROCESSORS, perf_event::errno_name(&error)),
            );
        }
    }
    let main = if settings.detailed { &progs.set_state_entry_detailed } else { &progs.set_state_entry };
    let main_link = explain(|| main.attach_kprobe(false, "tcp_set_state")).map_err(Refusal::Main)?;
    let fds = ProbeFds {
        main: main.as_fd().as_raw_fd(),
        main_link: main_link.as_fd().as_raw_fd(),
        owner_sets: None,
        owners: maps.owners.as_fd().as_raw_fd(),
        lost: Some(maps.lost.as_fd().as_raw_fd()),
    };
    links.push(main_link);
    let skeleton = ManuallyDrop::new(Skeleton::Perf(Box::new(skeleton)));
    Ok(Probe { links, events, holders: None, skeleton, rung: Rung::Kprobe, fds, own: Own::default() })
}
