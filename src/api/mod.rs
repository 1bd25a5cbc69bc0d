//! What hosts call: the six functions of the library that this one replaces, and those of `tcpevent.h`.

mod boundary;
pub mod classic;
mod engine;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod handles;
mod inet;
