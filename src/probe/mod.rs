//! Loads the BPF programs and attaches them: [`ladder`] tries one rung after another, [`ring`], [`perf`] and [`tracepoint`]
//! are the rungs, [`attached`] is what has come of it.

mod accesses;
mod attached;
mod btf;
mod btf_file;
mod counts;
mod fds;
mod features;
mod instructions;
mod kernel_filter;
mod ladder;
mod messages;
mod object;
mod owner_maps;
mod perf;
mod perf_event;
mod refusal;
mod ring;
pub mod skeletons;
pub mod tracefs;
mod tracepoint;
mod types;

pub use self::attached::Probe;
#[cfg(fuzzing)]
pub use self::btf::{Btf, Meaning, Step};
pub use self::counts::{ProbeFds, Variables};
pub use self::fds::BpfFds;
pub use self::ladder::Places;
pub use self::refusal::refused;
