//! The text of a filter.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tcpEvent::{Event, Kind};
use tcpEvent::Filter;

fuzz_target!(|text: &str| {
    // Skips words that name files: results would depend on the machine, and opening some has effects.
    if text.split(|c: char| c.is_whitespace() || c == ',').any(|word| word.starts_with('/')) {
        return;
    }
    match Filter::parse("filter", text) {
        Ok(filter) => {
            let mut event = Event::of(Kind::Close);
            event.family = 2;
            assert!(filter.fits(&event) || !filter.is_empty());
        }
        Err(error) => assert!(!error.to_string().contains('\n')),
    }
});
