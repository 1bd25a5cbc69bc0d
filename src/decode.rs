//! Ring record to [`Event`]. Pure: it knows neither libbpf nor the ring, and takes any bytes.

use zerocopy::{FromBytes, Immutable, KnownLayout};

use crate::event::{COMM_LEN, Event, Kind, Origin};

/// `struct tcp_record` of `bpf/tcp_event.h`.
#[repr(C)]
#[derive(FromBytes, Immutable, KnownLayout)]
struct Record {
    time_ns: u64,
    birth_ns: u64,
    bytes_received: u64,
    bytes_acked: u64,
    inode: u64,
    data_segs_out: u32,
    data_segs_in: u32,
    pid: u32,
    uid: u32,
    family: u16,
    local_port: u16,
    remote_port: u16,
    origin: u8,
    old_state: u8,
    local_addr: [u8; 16],
    remote_addr: [u8; 16],
    comm: [u8; COMM_LEN],
}

/// A close, and what is still needed to name its owner.
#[derive(Debug, PartialEq, Eq)]
pub struct Closed {
    /// The event. Its time is the probe's monotonic stamp until the clock has converted it.
    pub event: Event,
    /// No process was seen to act on the endpoint: look its inode up, where this is not 0.
    pub unowned_inode: Option<u64>,
}

/// Decodes one record. `None` where it is too short or holds what no probe of this library writes.
pub fn decode(bytes: &[u8]) -> Option<Closed> {
    let (record, _) = Record::read_from_prefix(bytes).ok()?;
    let origin = match record.origin {
        0 => Origin::Guess,
        1 => Origin::Connect,
        2 => Origin::Accept,
        3 => Origin::Close,
        4 => Origin::Inode,
        _ => return None,
    };
    if i32::from(record.family) != libc::AF_INET && i32::from(record.family) != libc::AF_INET6 {
        return None;
    }
    Some(Closed {
        unowned_inode: (origin == Origin::Guess).then_some(record.inode),
        event: Event {
            time_ns: record.time_ns,
            rx_bytes: record.bytes_received,
            tx_bytes: record.bytes_acked,
            segs_out: record.data_segs_out,
            segs_in: record.data_segs_in,
            pid: record.pid,
            uid: record.uid,
            family: record.family,
            local_port: record.local_port,
            remote_port: record.remote_port,
            kind: Kind::Close,
            origin,
            local_addr: record.local_addr,
            remote_addr: record.remote_addr,
            comm: record.comm,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::Index;

    fn sample() -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [111u64, 22, 70_001, 5_002, 0] {
            bytes.extend(word.to_ne_bytes());
        }
        for word in [4u32, 3, 1234, 1000] {
            bytes.extend(word.to_ne_bytes());
        }
        for half in [2u16, 8080, 443] {
            bytes.extend(half.to_ne_bytes());
        }
        bytes.extend([1, 9]);
        bytes.extend([127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend([10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend(*b"curl\0\0\0\0\0\0\0\0\0\0\0\0");
        bytes
    }

    #[test]
    fn every_field_lands_where_it_belongs() {
        let closed = decode(&sample()).unwrap();
        assert_eq!(closed.unowned_inode, None);
        let event = closed.event;
        assert_eq!(event.time_ns, 111);
        assert_eq!((event.rx_bytes, event.tx_bytes), (70_001, 5_002));
        assert_eq!((event.segs_out, event.segs_in), (4, 3));
        assert_eq!((event.pid, event.uid), (1234, 1000));
        assert_eq!((event.family, event.local_port, event.remote_port), (2, 8080, 443));
        assert_eq!(event.local_addr[..4], [127, 0, 0, 1]);
        assert_eq!(event.remote_addr[..4], [10, 0, 0, 2]);
        assert_eq!(event.comm, *b"curl\0\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!((event.kind, event.origin), (Kind::Close, Origin::Connect));
    }

    #[test]
    fn an_unowned_endpoint_asks_for_its_inode() {
        let mut bytes = sample();
        bytes[32..40].copy_from_slice(&4711u64.to_ne_bytes());
        bytes[62] = 0;
        let closed = decode(&bytes).unwrap();
        assert_eq!(closed.unowned_inode, Some(4711));
        assert_eq!(closed.event.origin, Origin::Guess);
    }

    #[test]
    fn a_record_cut_anywhere_is_refused() {
        let bytes = sample();
        for len in 0..bytes.len() {
            assert_eq!(decode(&bytes[..len]), None, "{len} bytes");
        }
    }

    #[test]
    fn an_unknown_origin_or_family_is_refused() {
        let mut bytes = sample();
        bytes[62] = 5;
        assert_eq!(decode(&bytes), None);
        let mut bytes = sample();
        bytes[56..58].copy_from_slice(&1u16.to_ne_bytes());
        assert_eq!(decode(&bytes), None);
    }

    /// What may be said of any bytes.
    fn check(bytes: &[u8]) -> Result<(), TestCaseError> {
        let whole = bytes.len() >= size_of::<Record>();
        let valid = whole && bytes[62] <= 4 && [[2, 0], [10, 0]].contains(&[bytes[56], bytes[57]]);
        let closed = decode(bytes);
        prop_assert_eq!(closed.is_some(), valid);
        if let Some(Closed { event, unowned_inode }) = closed {
            prop_assert_eq!(&event.time_ns.to_ne_bytes(), &bytes[..8]);
            prop_assert_eq!(&event.pid.to_ne_bytes(), &bytes[48..52]);
            prop_assert_eq!(&event.comm, &bytes[96..112]);
            prop_assert_eq!(unowned_inode.is_some(), bytes[62] == 0);
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn hostile_bytes_decode_or_are_refused(bytes in vec(any::<u8>(), 0..256)) {
            check(&bytes)?;
        }

        /// A record of any values, then a few bytes set to others, then cut or followed by more.
        #[test]
        fn hostile_records_decode_or_are_refused(
            values in vec(any::<u8>(), size_of::<Record>()),
            (family, origin) in (prop_oneof![Just(2u16), Just(10)], 0u8..=4),
            flips in vec((any::<Index>(), any::<u8>()), 0..4),
            len in prop_oneof![3 => Just(size_of::<Record>()), 1 => 0..2 * size_of::<Record>()],
        ) {
            let mut bytes = values;
            bytes[56..58].copy_from_slice(&family.to_ne_bytes());
            bytes[62] = origin;
            prop_assert!(decode(&bytes).is_some());
            for (at, to) in flips {
                *at.get_mut(&mut bytes) = to;
            }
            bytes.resize(len, 0xa5);
            check(&bytes)?;
        }
    }
}
