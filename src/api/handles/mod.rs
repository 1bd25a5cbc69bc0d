//! The functions of `tcpevent.h`, and what is behind a handle.

mod convert;
pub mod functions;
mod sized;
mod table;
pub mod types;
mod watch;
