//! What the BPF programs share with the library: records, settings, keys and constants. `bpf/tcp_event.h` and
//! `bpf/tcp_event_tracepoint.h` define them and say what they mean; the build makes Rust of those (`bpf/shared.rs`).
#![allow(missing_docs, non_camel_case_types, clippy::unreadable_literal)]

use std::mem::offset_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

include!(concat!(env!("OUT_DIR"), "/shared.rs"));
