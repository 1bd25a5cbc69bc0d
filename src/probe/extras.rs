//! What is attached beside the main program of a ring's rung, as far as the kernel lets.

use super::features::kernel_has_kprobes;
use super::instructions;
use super::types::{ACCEPT_ENTRY, CONNECT_EXIT, KernelTypes, OPEN_FILES, RETRANSMIT, SET_STATE};
use crate::config::{ProbeSettings, Rung};

/// How accepts are seen, and whether anything else is attached. Without a way to see them, an accepted endpoint that its
/// process has not acted on belongs to the one that holds its socket, and lets go of it in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extras {
    /// By a trampoline at `security_sock_graft`; and all the rest.
    AcceptEntry,
    /// By a kprobe at the same place, and the rest.
    AcceptKprobe,
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
    pub(super) const LADDER: [Self; 4] = [Self::AcceptEntry, Self::AcceptKprobe, Self::NoAccept, Self::Nothing];

    /// Whether the kernel has what it takes, as far as that is known before it is tried.
    pub(super) fn may_be_had(self, types: &KernelTypes) -> bool {
        match self {
            Self::AcceptEntry => types.fitting.target(ACCEPT_ENTRY).is_some(),
            Self::AcceptKprobe => kernel_has_kprobes(),
            Self::NoAccept | Self::Nothing => true,
        }
    }

    /// Whether the iterator tells who holds endpoints that are older than the probe.
    pub(super) fn adopt(self, types: &KernelTypes) -> bool {
        self != Self::Nothing && types.fitting.target(OPEN_FILES).is_some()
    }

    /// Whether the probe is told of SYNs that are sent again.
    pub(super) fn tell_retries(self, settings: &ProbeSettings, types: &KernelTypes) -> bool {
        self != Self::Nothing && settings.wanted.retries && types.fitting.target(RETRANSMIT).is_some()
    }

    /// Whether it is told where all ways to connect return, by a trampoline.
    pub(super) fn tell_unsent(self, settings: &ProbeSettings, types: &KernelTypes) -> bool {
        let target = || types.fitting.target(CONNECT_EXIT);
        self.may_tell_unsent(settings) && target().is_some_and(instructions::can_enter)
    }

    /// Whether it is told where connect returns, in whatever way.
    pub(super) fn may_tell_unsent(self, settings: &ProbeSettings) -> bool {
        self != Self::Nothing && settings.wanted.unsent
    }

    /// Whether it is told who lets go of a socket.
    pub(super) fn tell_let_go(self, settings: &ProbeSettings) -> bool {
        self != Self::Nothing && settings.wanted.closes
    }

    /// Where the kernel tells of what becomes of a socket, that is all that needs another look where closes are wanted alone, unless
    /// the main program can be preempted (a kprobe's cannot), or leaves something to the second look on purpose (a kprobe's detailed
    /// one). What the detailed program has to know of an endpoint then is read by pointers that are cast.
    pub(super) fn look_again(self, rung: Rung, settings: &ProbeSettings, types: &KernelTypes) -> Again {
        if self == Self::Nothing || types.fitting.target(SET_STATE).is_none() {
            return Again::Never;
        }
        let closes_alone = match (settings.detailed, rung) {
            (false, Rung::Kprobe) => true,
            (false, _) => !types.preemptible,
            (true, Rung::Kprobe) => false,
            (true, _) => !types.preemptible && !settings.wanted.states && types.casts.is_some(),
        };
        if closes_alone && types.tells_errors { Again::AtEnd } else { Again::AtChanges }
    }
}
