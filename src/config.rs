//! The settings of a watch, with their defaults and limits, from either source: the environment (`api/classic/env.rs`)
//! or a caller's options (`api/handles`).

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
    /// All rungs, in the order in which they are tried: see [`crate::probe`] for where the first two change places.
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

/// The settings of a probe.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProbeSettings {
    /// A single rung, or all in turn.
    pub rung: Option<Rung>,
    /// A BTF file, for a kernel without BTF of its own.
    pub btf: Option<PathBuf>,
    /// Which events are wanted.
    pub filter: Arc<Filter>,
    /// Whether events carry all details, or just what the classic functions report.
    pub detailed: bool,
    /// Whether changes of state are wanted. They are always detailed.
    pub states: bool,
    /// Whether closes are wanted.
    pub closes: bool,
}

/// Default number of slots.
pub const DEFAULT_SLOTS: usize = 1024;

/// The most slots of a queue: at 128 bytes each, 128 MiB.
pub const MOST_SLOTS: usize = 1 << 20;

/// Default time from sweep to sweep.
pub const SWEEP_INTERVAL: Duration = Duration::from_millis(6200);

/// Its limits.
pub const SWEEP_INTERVALS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(86_400);
