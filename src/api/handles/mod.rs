//! The functions of `tcpevent.h`, and what is behind a handle.

pub mod functions;
mod sized;
mod table;
mod watch;
