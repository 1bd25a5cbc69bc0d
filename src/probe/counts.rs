//! What the kernel's side counts, and the descriptors that tell it.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use libbpf_rs::{Link, Program, libbpf_sys};

use super::owner_maps;
use crate::probe::skeletons::core::TcpEventSkel;
use crate::sys::shared::{TCP_LOST_FULL, TCP_LOST_OWNERS, TCP_LOST_RECORDS, TCP_MOST_OWNERS};

/// Descriptors of the parts that count. Valid for as long as the probe is attached.
#[derive(Clone, Copy)]
pub struct ProbeFds {
    pub(super) main: RawFd,
    pub(super) main_link: RawFd,
    /// The table of `bpf/owners.h`, where it is used.
    pub(super) owner_sets: Option<RawFd>,
    /// The map of owners, or of those that the table has no place for.
    pub(super) owners: RawFd,
    /// The map of `bpf/perf_output.h` that counts what is lost.
    pub(super) lost: Option<RawFd>,
}

impl ProbeFds {
    pub(super) fn of(main: &Program<'_>, main_link: &Link, skeleton: &TcpEventSkel<'_>) -> Self {
        let maps = &skeleton.maps;
        let has_sets = maps.rodata_data.as_ref().is_some_and(|constants| constants.can_cast);
        Self {
            main: main.as_fd().as_raw_fd(),
            main_link: main_link.as_fd().as_raw_fd(),
            owner_sets: has_sets.then(|| maps.owner_sets.as_fd().as_raw_fd()),
            owners: maps.more_owners.as_fd().as_raw_fd(),
            lost: None,
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

    /// What a program without variables has lost: records, and owners that found the map full. 0 for others, whose
    /// variables tell.
    pub fn lost(&self) -> (u64, u64) {
        (self.lost_of(TCP_LOST_RECORDS) + self.lost_of(TCP_LOST_FULL), self.lost_owners())
    }

    /// The second of these alone.
    pub fn lost_owners(&self) -> u64 {
        self.lost_of(TCP_LOST_OWNERS)
    }

    /// Whether the program itself has counted records that found the buffer full.
    pub fn counts_full(&self) -> bool {
        self.lost_of(TCP_LOST_FULL) > 0
    }

    /// `enum tcp_lost`
    fn lost_of(&self, key: u8) -> u64 {
        let (key, mut count) = (u32::from(key), 0u64);
        let Some(map) = self.lost else {
            return 0;
        };
        // SAFETY: a key and a value of the map's sizes.
        let result = unsafe { libbpf_sys::bpf_map_lookup_elem(map, (&raw const key).cast(), (&raw mut count).cast()) };
        if result == 0 { count } else { 0 }
    }

    /// Endpoints whose owners are kept. 0 where this thread may not look.
    pub fn tracked(&self) -> u64 {
        // What comes and goes while it is counted may be counted twice.
        (self.owner_sets.map_or(0, owner_maps::tracked) + self.tracked_in_map()).min(self.most_tracked())
    }

    /// Endpoints whose owners can be kept.
    pub fn most_tracked(&self) -> u64 {
        self.owner_sets.map_or(MOST_TRACKED.into(), |_| owner_maps::PLACES)
    }

    fn tracked_in_map(&self) -> u64 {
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
            if result == -libc::EINVAL && first {
                return self.tracked_one_by_one();
            }
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

    /// The same for kernels before 5.6. Entries that come and go meanwhile may make it begin again: it has an end.
    fn tracked_one_by_one(&self) -> u64 {
        let mut key = 0u64;
        let mut from = std::ptr::null();
        for tracked in 0..MOST_TRACKED.into() {
            // SAFETY: keys of the map's size; the one to begin at may be the one to fill.
            if unsafe { libbpf_sys::bpf_map_get_next_key(self.owners, from, (&raw mut key).cast()) } != 0 {
                return tracked;
            }
            from = (&raw const key).cast();
        }
        MOST_TRACKED.into()
    }
}

/// A value of the map of owners: the largest one of any program's.
type Owner = crate::probe::skeletons::tracepoint::types::endpoint;

const _: () = assert!(size_of::<Owner>() >= size_of::<crate::probe::skeletons::core::types::owner>());

/// Endpoints that can have an owner at the same time, where there is no table.
pub const MOST_TRACKED: u32 = TCP_MOST_OWNERS;

/// What the kernel has to tell of a program or link. All-zero bytes must be a valid `T`.
fn info<T>(fd: RawFd) -> Option<T> {
    let mut info = MaybeUninit::<T>::zeroed();
    let mut length = size_of::<T>().try_into().unwrap_or(0);
    // SAFETY: `info` is `length` bytes, all of them may be written, and its pointers are null.
    let result = unsafe { libbpf_sys::bpf_obj_get_info_by_fd(fd, info.as_mut_ptr().cast(), &raw mut length) };
    // SAFETY: zeroes, or what the kernel has put there.
    (result == 0).then(|| unsafe { info.assume_init() })
}
