//! A probe that is attached: what it holds, what it tells, and how it ends.

use std::mem::{self, ManuallyDrop};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use libbpf_rs::skel::Skel;
use libbpf_rs::{AsRawLibbpf, Link, MapMut, libbpf_sys};

use super::counts::ProbeFds;
use super::skeletons::core::TcpEventSkel;
use super::skeletons::perf::TcpEventPerfSkel;
use super::skeletons::tracepoint::TcpEventTracepointSkel;
use super::variables::SharedVariables;
use crate::config::Rung;
use crate::sys::own_fd::{Identity, close_those_left, identified, is_whole};
use crate::sys::pid_namespace::PidNamespace;

/// A probe that is attached. Dropping it detaches and unloads everything.
pub struct Probe<'obj> {
    // In the order of their attachment. Detached before the object they belong to is unloaded.
    pub(super) links: Vec<Link>,
    /// Perf events that the links close.
    pub(super) events: Vec<RawFd>,
    /// The link of the iterator over all open files.
    pub(super) holders: Option<OwnedFd>,
    /// Maps and programs.
    pub(super) skeleton: ManuallyDrop<Skeleton<'obj>>,
    /// The programs' variables, where they have any.
    pub(super) variables: Option<Arc<SharedVariables>>,
    pub(super) rung: Rung,
    pub(super) fds: ProbeFds,
    /// What the descriptors of all that was when it was attached.
    pub(super) own: Own,
}

/// Descriptors that libbpf closes, and what they stand for.
#[derive(Default)]
pub struct Own {
    links: Vec<(RawFd, Identity)>,
    object: Vec<(RawFd, Identity)>,
}

/// The maps and programs of a rung.
pub enum Skeleton<'obj> {
    /// Of `bpf/tcp_event.bpf.c`.
    Core(Box<TcpEventSkel<'obj>>),
    /// Of `bpf/tcp_event_perf.bpf.c`.
    Perf(Box<TcpEventPerfSkel<'obj>>),
    /// Of `bpf/tcp_event_tracepoint.bpf.c`.
    Tracepoint(Box<TcpEventTracepointSkel<'obj>>),
}

impl<'obj> Probe<'obj> {
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

    /// The programs' variables, where they have any.
    pub fn variables(&self) -> Option<&Arc<SharedVariables>> {
        self.variables.as_ref()
    }

    /// All descriptors that keep it attached, or loaded.
    pub(super) fn held(&self) -> Vec<RawFd> {
        let holders = self.holders.as_ref().map(AsRawFd::as_raw_fd);
        self.link_fds().into_iter().chain(holders).chain(self.object_fds()).collect()
    }

    /// Descriptors of its links, and of the perf events that they close.
    fn link_fds(&self) -> Vec<RawFd> {
        self.links.iter().map(|link| link.as_fd().as_raw_fd()).chain(self.events.iter().copied()).collect()
    }

    /// Descriptors of its programs and maps.
    fn object_fds(&self) -> Vec<RawFd> {
        let object = self.object();
        let programs = object.progs().map(|program| {
            // SAFETY: a program of an object that lives. One that is not loaded has a negative number for a descriptor.
            unsafe { libbpf_sys::bpf_program__fd(program.as_libbpf_object().as_ptr()) }
        });
        let maps = object.maps().map(|map| map.as_fd().as_raw_fd());
        programs.chain(maps).filter(|fd| *fd >= 0).collect()
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
    pub fn of(probe: &Probe<'_>) -> Self {
        Self { links: identified(probe.link_fds()), object: identified(probe.object_fds()) }
    }
}
