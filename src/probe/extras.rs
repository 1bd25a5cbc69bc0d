//! What is attached beside the main program of a ring's rung, as far as the kernel lets.

use super::types::{KernelTypes, OPEN_FILES, SET_STATE};
use crate::config::{ProbeSettings, Rung};

/// How accepts are seen, and whether anything else is attached. Without a way to see them, accepted endpoints get their owner
/// by inode, once they close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extras {
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
pub(super) enum Again {
    /// At each change of state.
    AtChanges,
    /// Where a socket fails, and where it is destroyed.
    AtEnd,
    Never,
}

impl Extras {
    /// In the order in which they are tried: a kernel that cannot do any still does the main thing.
    pub(super) const LADDER: [Self; 5] =
        [Self::AcceptGraft, Self::AcceptSyscallsAndIoUring, Self::AcceptSyscalls, Self::NoAccept, Self::Nothing];

    pub(super) fn see_accepts(self) -> bool {
        !matches!(self, Self::NoAccept | Self::Nothing)
    }

    /// By the exits of the system calls.
    pub(super) fn by_syscalls(self) -> bool {
        matches!(self, Self::AcceptSyscallsAndIoUring | Self::AcceptSyscalls)
    }

    /// Also where io_uring accepts.
    pub(super) fn by_io_uring(self) -> bool {
        self == Self::AcceptSyscallsAndIoUring
    }

    /// Whether the iterator tells who holds endpoints that are older than the probe.
    pub(super) fn adopt(self, types: &KernelTypes) -> bool {
        self != Self::Nothing && types.fitting.target(OPEN_FILES).is_some()
    }

    /// Whether it is told who lets go of a socket.
    pub(super) fn tell_let_go(self, settings: &ProbeSettings) -> bool {
        self != Self::Nothing && settings.closes
    }

    /// Where the kernel tells of what becomes of a socket, that is all that the tracepoint's plain program needs, unless it
    /// can be preempted.
    pub(super) fn look_again(self, rung: Rung, settings: &ProbeSettings, types: &KernelTypes) -> Again {
        if self == Self::Nothing || types.fitting.target(SET_STATE).is_none() {
            Again::Never
        } else if !settings.detailed && rung == Rung::TpBtf && !types.preemptible && types.tells_errors {
            Again::AtEnd
        } else {
            Again::AtChanges
        }
    }
}
