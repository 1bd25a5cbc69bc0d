//! The six functions that consumers of the replaced library call, and their structures.

pub mod abi;
pub mod env;
pub mod event;
pub mod functions;
pub mod session;
