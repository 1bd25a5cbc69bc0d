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
    /// Which connections are watched.
    pub filter: Arc<Filter>,
    /// Whether events carry all details, or just what the classic functions report.
    pub detailed: bool,
    /// Which events are wanted.
    pub wanted: Wanted,
}

/// Events that a probe tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // Any of them with any other.
pub struct Wanted {
    /// Changes of state. They are always detailed.
    pub states: bool,
    /// Closes.
    pub closes: bool,
    /// SYNs that are sent again. They are always detailed.
    pub retries: bool,
    /// Attempts that fail before a SYN. They are always detailed.
    pub unsent: bool,
}

impl Wanted {
    /// What the classic functions tell.
    pub const CLOSES: Self = Self { states: false, closes: true, retries: false, unsent: false };
}

impl ProbeSettings {
    /// Whether any of the events is wanted that a probe tells.
    pub fn needs_probe(&self) -> bool {
        self.wanted != Wanted::default()
    }
}

/// Default number of slots.
pub const DEFAULT_SLOTS: usize = 1024;

/// The most slots of a queue: at 128 bytes each, 128 MiB.
pub const MOST_SLOTS: usize = 1 << 20;

/// Default time from sweep to sweep.
pub const SWEEP_INTERVAL: Duration = Duration::from_millis(6200);

/// Its limits.
pub const SWEEP_INTERVALS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(86_400);
