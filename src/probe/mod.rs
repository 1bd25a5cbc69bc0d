//! Loads the BPF programs and attaches them: [`ladder`] tries one rung after another, [`ring`], [`perf`] and [`tracepoint`]
//! are the rungs, [`attached`] is what has come of it. A [`refusal`] says at which step a try failed, [`remedy`] what to do about
//! it.

mod accesses;
mod attached;
mod btf;
mod btf_file;
mod configure;
mod counts;
mod extras;
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
mod remedy;
mod ring;
pub mod skeletons;
pub mod tracefs;
mod tracepoint;
mod types;
mod variables;

pub use self::attached::Probe;
#[cfg(fuzzing)]
pub use self::btf::{Btf, Meaning, Step};
pub use self::counts::ProbeFds;
pub use self::fds::BpfFds;
pub use self::ladder::{Places, attach};
pub use self::refusal::Refusal;
pub use self::remedy::refused;
pub use self::variables::{SharedVariables, Variables};
