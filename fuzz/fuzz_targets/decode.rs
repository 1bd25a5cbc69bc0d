//! Records of the BPF programs, plain and detailed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tcpEvent::internals::record::{DETAILED_RECORD_LEN, RECORD_LEN, decode};

fuzz_target!(|bytes: &[u8]| {
    let decoded = decode(bytes);
    let whole = bytes.len() == RECORD_LEN || bytes.len() >= DETAILED_RECORD_LEN;
    assert!(whole || decoded.is_none());
    if let Some(decoded) = decoded {
        assert_eq!(decoded.event.monotonic_ns.to_ne_bytes(), bytes[..8]);
        assert!(decoded.event.payload_received <= decoded.event.bytes_received);
    }
});
