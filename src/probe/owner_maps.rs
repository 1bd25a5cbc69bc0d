//! The maps of `bpf/owners.h`: made while the kernel's types are still being read, and counted.

use std::os::fd::{AsFd, RawFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use libbpf_rs::{MapHandle, MapType, libbpf_sys};

use super::messages::explain;
use super::refusal::{Refusal, Stage};
use super::types::KERNEL_BTF;
use crate::config::{ProbeSettings, Rung};
use crate::probe::skeletons::core::OpenTcpEventMaps;
use crate::probe::skeletons::core::types::{owner, owner_set};
use crate::sys::mapping::{Access, Mapping};
use crate::sys::shared::{TCP_MORE_OWNERS, TCP_SET_BITS, TCP_SET_PLACES};
use crate::sys::threads::spawn;

const OWNER_SETS: u32 = 1 << TCP_SET_BITS;

/// Endpoints that have a place in both. Some of the first to find none come when two thirds are taken, some 180,000: the more
/// there are, the more sets are full.
pub(super) const PLACES: u64 = (OWNER_SETS * TCP_SET_PLACES) as u64 + TCP_MORE_OWNERS as u64;

/// Maps that are being made, on a thread of their own: the kernel clears all of the table's 16 MiB, which takes as long as
/// a fourth of all else that a start does.
pub(super) struct OwnerMaps(JoinHandle<Option<Made>>);

struct Made {
    owner_sets: MapHandle,
    more_owners: MapHandle,
}

impl OwnerMaps {
    /// Begins, where they may come to be used.
    pub(super) fn begin(settings: &ProbeSettings) -> Option<Self> {
        if settings.rung == Some(Rung::Tracepoint) || !Path::new(KERNEL_BTF).exists() {
            return None;
        }
        spawn("tcpevent-maps", Made::new).ok().map(Self)
    }

    /// Waits for them, and has the programs use them. Where they could not be made, libbpf will try again, or say why not.
    pub(super) fn hand_over(self, maps: &mut OpenTcpEventMaps<'_>) -> Result<(), Refusal> {
        let Ok(Some(made)) = self.0.join() else {
            return Ok(());
        };
        explain(Stage::Open, || maps.owner_sets.reuse_fd(made.owner_sets.as_fd()))?;
        explain(Stage::Open, || maps.more_owners.reuse_fd(made.more_owners.as_fd()))
    }
}

impl Made {
    fn new() -> Option<Self> {
        let of_owners = |kind, name, key: usize, value: usize, entries, map_flags| {
            let options = libbpf_sys::bpf_map_create_opts {
                sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
                map_flags,
                ..Default::default()
            };
            MapHandle::create(kind, Some(name), key.try_into().ok()?, value.try_into().ok()?, entries, &options).ok()
        };
        let (set, owner) = (size_of::<owner_set>(), size_of::<owner>());
        let mapped = libbpf_sys::BPF_F_MMAPABLE;
        Some(Self {
            owner_sets: of_owners(MapType::Array, "owner_sets", size_of::<u32>(), set, OWNER_SETS, mapped)?,
            more_owners: of_owners(MapType::Hash, "more_owners", size_of::<u64>(), owner, TCP_MORE_OWNERS, 0)?,
        })
    }
}

/// Endpoints that are in the table.
pub(super) fn tracked(fd: RawFd) -> u64 {
    // A set is a multiple of 8 bytes, and so they follow each other in the map without a gap.
    let bytes = OWNER_SETS as usize * size_of::<owner_set>();
    let Ok(table) = Mapping::of(fd, bytes, Access::ReadOnly) else {
        return 0;
    };
    let mut tracked = 0;
    for set in 0..OWNER_SETS as usize {
        for place in 0..size_of_val(&owner_set::default().keys) / size_of::<u64>() {
            // SAFETY: within the mapping, aligned; the kernel's program writes it as an atomic too.
            let key = unsafe {
                let set = table.start().cast::<owner_set>().add(set);
                AtomicU64::from_ptr((&raw mut (*set).keys).cast::<u64>().add(place))
            };
            tracked += u64::from(key.load(Ordering::Relaxed) > 1);
        }
    }
    tracked
}
