//! The atomics of [`slots`], by a name that its model has others for (`tests/slots.rs`).
//!
//! [`slots`]: super::slots

pub use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
