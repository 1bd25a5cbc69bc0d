//! What the programs of a ring's rung are told: constants before they are loaded, the filter's lists after that.

use libbpf_rs::{MapCore, MapFlags, MapMut};
use zerocopy::IntoBytes;

use super::counts::MOST_TRACKED;
use super::extras::Again;
use super::kernel_filter;
use super::messages::explain;
use super::object::wanted;
use super::owner_maps::OwnerMaps;
use super::refusal::{Refusal, Stage};
use super::skeletons::core::{OpenTcpEventSkel, TcpEventSkel};
use super::types::KernelTypes;
use crate::config::{ProbeSettings, Rung};
use crate::event::filter::{Filter, Prefix};
use crate::sys::pid_namespace::PidNamespace;

/// Sets what the programs cannot change: constants, and the sizes of maps.
pub(super) fn configure(
    open: &mut OpenTcpEventSkel<'_>,
    rung: Rung,
    again: Again,
    settings: &ProbeSettings,
    types: &KernelTypes,
    made: Option<OwnerMaps>,
) -> Result<(), Refusal> {
    let filter = &settings.filter;
    let constants = open.maps.rodata_data.as_deref_mut().expect("the program has constants");
    constants.main_is_kprobe = rung == Rung::Kprobe;
    constants.second_look = again == Again::AtChanges;
    constants.look_at_end = again == Again::AtEnd;
    constants.look_at_end_detailed = again == Again::AtEnd && settings.detailed;
    constants.is_preemptible = types.preemptible;
    constants.retransmit_tells_error = types.tells_retransmit_errors;
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
        explain(Stage::Open, || maps.owner_sets.set_autocreate(false))?;
        explain(Stage::Open, || maps.more_owners.set_max_entries(MOST_TRACKED))?;
    } else if let Some(made) = made {
        made.hand_over(maps)?;
    }
    if !settings.wanted.unsent {
        explain(Stage::Open, || maps.attempts.set_autocreate(false))?;
    }
    if !settings.detailed {
        for map in [&mut maps.port_sets, &mut maps.local_prefixes, &mut maps.remote_prefixes] {
            explain(Stage::Open, || map.set_autocreate(false))?;
        }
    }
    for (map, prefixes) in
        [(&mut maps.local_prefixes, &filter.local_prefixes), (&mut maps.remote_prefixes, &filter.remote_prefixes)]
    {
        let entries = u32::try_from(prefixes.len().max(1)).unwrap_or(u32::MAX);
        explain(Stage::Open, || map.set_max_entries(entries))?;
    }
    Ok(())
}

/// Puts the filter's lists into their maps.
pub(super) fn fill_lists(skeleton: &mut TcpEventSkel<'_>, filter: &Filter) -> libbpf_rs::Result<()> {
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
