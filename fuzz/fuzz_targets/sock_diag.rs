//! Datagrams of sock_diag: their messages, and for each the socket and the notification that it was freed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tcpEvent::internals::diag::{Reply, for_each_reply, parse_destroyed, parse_socket};

fuzz_target!(|bytes: &[u8]| {
    let mut replies = 0;
    for_each_reply(bytes, 0, |reply| {
        replies += 1;
        if let Reply::Socket(payload) = reply {
            let (socket, destroyed) = (parse_socket(payload), parse_destroyed(payload));
            assert!(socket.is_none() || destroyed.is_some());
        }
    });
    // A header each, and perhaps a note that the list was interrupted.
    assert!(replies <= bytes.len() / 16 * 2 + 1);
});
