//! The variables that the programs of a ring's rung share with the library.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU32, AtomicU64};

use super::refusal::{Refusal, Stage};
use super::skeletons::core::TcpEventSkel;
use super::skeletons::core::types::bss;
use crate::sys::mapping::{Access, Mapping};

/// The variables of `bpf/tcp_event.bpf.c`, mapped once more than by libbpf: this mapping stays for as long as somebody has it,
/// and no reference to plain memory is made of it.
pub struct SharedVariables(Mapping);

/// Each of them. The kernel's side writes too, so all access is atomic.
#[derive(Debug)]
pub struct Variables<'map> {
    /// 1 asks the program to wake the reader at the next record.
    pub reader_sleeps: &'map AtomicU32,
    /// 1 tells the iterator that owners of older endpoints are known.
    pub(super) adopted: &'map AtomicU32,
    /// To be set once it is told who lets go of a socket.
    pub(super) sees_let_go: &'map AtomicU32,
    /// To be set once it is told where ways to connect return: which ones.
    pub(super) heard_connects: &'map AtomicU32,
    /// Records that found the ring full.
    pub lost_records: &'map AtomicU64,
    /// Owners that found the map full.
    pub lost_owners: &'map AtomicU64,
    /// Changes that the main program missed, and the second look reported.
    pub recovered: &'map AtomicU64,
}

impl SharedVariables {
    pub(super) fn map(skeleton: &TcpEventSkel<'_>) -> Result<Self, Refusal> {
        Mapping::of(skeleton.maps.bss.as_fd().as_raw_fd(), size_of::<bss>(), Access::ReadWrite)
            .map(Self)
            .map_err(|error| Refusal::by_system(Stage::Load, "the program's variables cannot be mapped", &error))
    }

    /// To read and write.
    pub fn get(&self) -> Variables<'_> {
        let bss = self.0.start().cast::<bss>();
        // SAFETY: within the mapping, which is at the start of a page and so aligned, and lives as long as the references. In
        // this process it is accessed by these atomics alone.
        unsafe {
            Variables {
                reader_sleeps: AtomicU32::from_ptr(&raw mut (*bss).reader_sleeps),
                adopted: AtomicU32::from_ptr(&raw mut (*bss).adopted),
                sees_let_go: AtomicU32::from_ptr(&raw mut (*bss).sees_let_go),
                heard_connects: AtomicU32::from_ptr(&raw mut (*bss).heard_connects),
                lost_records: AtomicU64::from_ptr(&raw mut (*bss).lost_records),
                lost_owners: AtomicU64::from_ptr(&raw mut (*bss).lost_owners),
                recovered: AtomicU64::from_ptr(&raw mut (*bss).recovered),
            }
        }
    }
}
