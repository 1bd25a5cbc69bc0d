//! The environment, except the variable that names a file, and the filter, which has its own target.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tcpEvent::internals::classic::env::Settings;
use tcpEvent::internals::MOST_SLOTS;

const NAMES: [&str; 5] =
    ["TCPEVENT_PROBE", "TCPEVENT_QUEUE", "TCPEVENT_NETLINK_INTERVAL", "TCPEVENT_ON_ERROR", "TCPEVENT_LOG"];

fuzz_target!(|text: &str| {
    let mut values = text.split('\0');
    let values = NAMES.map(|name| (name, values.next().map(ToOwned::to_owned)));
    let (settings, errors) =
        Settings::read(|name| values.iter().find(|(known, _)| *known == name).and_then(|(_, value)| value.clone()));
    assert!((1..=MOST_SLOTS).contains(&settings.queue_slots));
    assert!(errors.len() <= NAMES.len());
});
