//! The kernel's type information, which may come from a user's file.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| tcpEvent::internals::fuzzing::btf(bytes));
