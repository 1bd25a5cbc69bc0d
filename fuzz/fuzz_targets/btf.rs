//! The kernel's type information, which a user's file may take the place of.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| tcpEvent::internals::fuzzing::btf(bytes));
