//! The functions of `tcpevent.h`, and what is behind a handle.

pub mod functions;
mod options;
mod sized;
mod slots;
mod sync;
pub(super) mod table;
pub mod types;
pub(super) mod watch;
