//! The format file of a tracepoint.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tcpEvent::internals::tracefs::Format;

fuzz_target!(|text: &str| {
    let format = Format::parse(text);
    for name in ["skaddr", "family", "protocol", "saddr", "daddr_v6", ""] {
        let _ = format.field(name);
    }
});
