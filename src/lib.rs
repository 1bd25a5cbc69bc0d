//! libtcpEvent: every TCP connection of a Linux host, as it closes and while it is open.
//!
//! # The contract
//!
//! **Compatibility.** The crate builds `libtcpEvent.so`, whose six functions (see [`api::classic`]) and structures (see
//! [`api::classic::abi`]) are those of the C++ library of the same name; consumers of that one run on this one unchanged. New programs
//! use the `tcpevent_*` functions (see [`api::handles`]), whose structures may grow: each comes with its size.
//!
//! **Threads.** All functions may be called from any number of threads. The library has two threads of its own, and two
//! more for each handle: one loads the probe and reads its records, one sweeps the sockets that are open. All block all
//! signals. `cleanup`, `getStatus` and `tcpevent_wake` are async-signal-safe, most others are not. A forked child
//! begins with a library in which nothing runs, and all handles closed. The three calls that wait (`DequeuePerfEvent`,
//! `setupBPF`, `tcpevent_read`) are cancellation points while they do; all others hold cancellation off until they return
//! (see `sys/cancellation.rs`). All work after main has returned, and on threads that are ending.
//!
//! **Errors.** Of the classic functions, a failing start is one line on stderr, with cause and remedy. It ends the process
//! only in the two functions that consumers of the reference expect it of, and not where TCPEVENT_ON_ERROR=continue is
//! set. Nothing is ever written to stdout, `printCharArray` apart. The `tcpevent_*` functions return a negative errno,
//! keep the line for `tcpevent_last_error`, and write nowhere. No panic crosses into C.
//!
//! # The parts
//!
//! Data flows one way, and each folder imports only from those to its right:
//!
//! ```text
//! api -> ingest -> probe, sockets -> queue -> event -> sys
//! ```
//!
//! `probe` loads the BPF programs and attaches them; they write records. `ingest` reads the records and makes events of
//! them, `sockets` adds snapshots of open sockets, and `queue` keeps all of them until a consumer asks. [`api`] is what
//! consumers call: the classic functions and the handles, each with an owner of its threads. `tests/layout.rs` fails where
//! an import goes the other way, or in a circle.
#![allow(non_snake_case)]

mod api;
mod config;
mod error;
mod event;
mod ingest;
mod probe;
mod queue;
mod sockets;
mod sys;

pub use api::engine::WatchStatistics;
pub use api::native::{Events, Read, Watch, WatchBuilder};
pub use config::Rung;
pub use error::Error;
pub use event::counters::{Shed, Statistics};
pub use event::filter::Filter;
pub use event::{Backlog, Begin, Direction, Ending, Event, Failure, Kind, Known, NO_USER, OwnerBy, state};
pub use sys::log::Level;

/// What the tests, the benches and the fuzz targets look at beside that. Nothing here is for programs.
#[doc(hidden)]
pub mod internals {
    #[cfg(fuzzing)]
    pub use crate::api::fuzzing;
    pub mod classic {
        pub use crate::api::classic::{abi, env, event};
    }
    pub use crate::api::handles::types as handles;
    pub use crate::config::{DEFAULT_SLOTS, MOST_SLOTS};
    pub use crate::ingest::record;
    pub use crate::probe::tracefs;
    pub use crate::queue::{Queue, Queued};
    pub use crate::sockets::diag;
}
