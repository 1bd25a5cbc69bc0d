//! What a watch can be asked for, with its defaults and limits, wherever the asking comes from: the environment
//! (`api/classic/env.rs`) or a caller's options (`api/handles`).

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::event::filter::Filter;

/// Which probe to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rung {
    /// A kprobe on `tcp_set_state`.
    Kprobe,
    /// The typed tracepoint `inet_sock_set_state`.
    TpBtf,
    /// The plain tracepoint of the same name.
    Tracepoint,
}

impl Rung {
    /// All rungs, in the order in which they are tried.
    pub const LADDER: [Self; 3] = [Self::Kprobe, Self::TpBtf, Self::Tracepoint];

    /// The name that TCPEVENT_PROBE takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kprobe => "kprobe",
            Self::TpBtf => "tp_btf",
            Self::Tracepoint => "tracepoint",
        }
    }
}

/// What a probe is to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProbeSettings {
    /// One rung only, or all in turn.
    pub rung: Option<Rung>,
    /// The kernel's types, for a kernel without its own.
    pub btf: Option<PathBuf>,
    /// Which events are wanted.
    pub filter: Arc<Filter>,
    /// Whether all that is known of an event is wanted, or just what the classic functions tell.
    pub detailed: bool,
    /// Whether changes of state are wanted. They come detailed only.
    pub states: bool,
    /// Whether closes are wanted.
    pub closes: bool,
}

/// Slots where nothing else is asked for.
pub const DEFAULT_SLOTS: usize = 1024;

/// The most slots that a queue can have: at 128 bytes each, 128 MiB.
pub const MOST_SLOTS: usize = 1 << 20;

/// From sweep to sweep, where nothing else is asked for.
pub const SWEEP_INTERVAL: Duration = Duration::from_millis(6200);

/// What can be asked for.
pub const SWEEP_INTERVALS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(86_400);
