//! A filter as the BPF programs have it.

use super::skeletons::core::types::{tcp_filter, tcp_port_set};
use crate::event::filter::{Filter, Prefix};
use crate::sys::shared::{
    TCP_LIST_LOCAL_PORTS, TCP_LIST_LOCAL_PREFIXES, TCP_LIST_REMOTE_PORTS, TCP_LIST_REMOTE_PREFIXES, tcp_prefix,
};

/// What `PortSet::bits` gives: a bit for each port.
const _: () = assert!(size_of::<tcp_port_set>() == 65_536 / 8);

/// All but the lists, which are in maps.
pub(super) fn of(filter: &Filter) -> tcp_filter {
    let lists = [
        (filter.local_ports.is_some(), TCP_LIST_LOCAL_PORTS),
        (filter.remote_ports.is_some(), TCP_LIST_REMOTE_PORTS),
        (!filter.local_prefixes.is_empty(), TCP_LIST_LOCAL_PREFIXES),
        (!filter.remote_prefixes.is_empty(), TCP_LIST_REMOTE_PREFIXES),
    ];
    tcp_filter {
        cgroup: filter.cgroup.unwrap_or(0),
        netns: filter.netns.unwrap_or(0),
        pid: filter.pid.unwrap_or(0),
        uid: filter.uid.unwrap_or(0),
        family: filter.family.unwrap_or(0),
        lists: lists.iter().filter(|(counts, _)| *counts).fold(0, |bits, (_, list)| bits | list),
        by_uid: filter.uid.is_some().into(),
        failed_only: filter.failed_only.into(),
        reserved: [0; 7],
    }
}

/// The key of a list of prefixes.
pub(super) fn key_of(prefix: &Prefix) -> tcp_prefix {
    tcp_prefix { length: prefix.length.into(), addr: prefix.addr }
}
