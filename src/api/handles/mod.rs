//! The functions of `tcpevent.h`, and what is behind a handle.

mod convert;
pub mod functions;
mod sized;
mod slots;
mod sync;
pub(super) mod table;
pub mod types;
pub(super) mod watch;
