//! Commands of arbitrary bytes: a process may choose any name, and the consumer gets it unaltered.

use crate::consumer::{Consumer, finds_holders, turn};
use crate::traffic::{Peer, set_linger_0};

/// A name as the consumer prints it: with a question mark for each control character.
fn printed(name: &[u8]) -> String {
    let clean: Vec<u8> = name.iter().map(|byte| if *byte < 32 { b'?' } else { *byte }).collect();
    String::from_utf8_lossy(&clean).into_owned()
}

#[test]
fn names_of_control_bytes_and_broken_utf8_come_whole_and_end() {
    let _turn = turn();
    for (comm, argv0) in [
        // Of maximal length, and longer: a comm has 15 bytes; of argv[0] the first 16 count.
        (
            b"\x01\x1b[31m\xff\xfe\x80\nin\tred".as_slice(),
            b"\x07\x1b]0;\xff\xc3\x28\n\x7f\xf0\x9f\x98no more".as_slice(),
        ),
        (b"0123456789abcdefghij", b"0123456789abcdefghij"),
        (&[0xff; 40], &[0x80; 400]),
        (b"\n", b"\r\n"),
        (b" ", b"%s%n%s%n"),
    ] {
        let mut peer = Peer::run(1002, comm, argv0);
        let mut consumer = Consumer::started(&[("TCPEVENT_NETLINK_INTERVAL", "0.2")]);
        let client = peer.connect();
        let ports = (peer.port(), client.local_addr().unwrap().port());
        consumer.tell("consume 1");
        let snapshot = consumer.event("the peer's end", |event| event.ports() == ports);
        assert_eq!((snapshot.pid, snapshot.uid), (peer.pid(), 1002));
        assert_eq!(snapshot.task, printed(&argv0[..argv0.len().min(16)]));
        set_linger_0(&client);
        drop(client);
        let close = consumer.event("the close", |event| event.ports() == ports && event.task != snapshot.task);
        if !finds_holders() {
            assert_eq!((close.pid, close.uid, close.task.as_str()), (0, 0, ""));
            continue;
        }
        assert_eq!((close.pid, close.uid), (peer.pid(), 1002));
        assert_eq!(close.task, printed(&comm[..comm.len().min(15)]));
    }
}
