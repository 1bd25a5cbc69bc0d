//! What hosts call: the six functions of the library that this one replaces, those of `tcpevent.h`, and the crate's own API.

mod boundary;
pub mod classic;
#[cfg(test)]
mod end_to_end;
pub mod engine;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod handles;
mod inet;
pub mod native;
