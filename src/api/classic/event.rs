//! An event in the queue of the classic functions: what a `tcp_event_t` needs, in binary.

use std::ffi::{c_char, c_int};
use std::mem::size_of;

use crate::api::classic::abi::{TEXT_LEN, tcp_event_t};
use crate::api::inet::inet_ntop;
use crate::event::{COMM_LEN, Event, Kind, NO_USER};
use crate::queue::Queued;

/// An event in the classic queue. Addresses are formatted when it is dequeued, by [`tcp_event_t::from`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassicEvent {
    /// Wall clock, nanoseconds since 1970.
    pub time_ns: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent; on close, bytes acknowledged.
    pub tx_bytes: u64,
    /// Segments sent; on close, only those with data.
    pub segs_out: u32,
    /// Segments received; on close, only those with data.
    pub segs_in: u32,
    /// Owner: thread group ID.
    pub pid: u32,
    /// Owner: user ID.
    pub uid: u32,
    /// `AF_INET` or `AF_INET6`.
    pub family: u16,
    /// Local port, host order.
    pub local_port: u16,
    /// Remote port, host order.
    pub remote_port: u16,
    /// The kind of event.
    pub kind: Kind,
    /// Local address, network order; an IPv4 address fills the first 4 bytes.
    pub local_addr: [u8; 16],
    /// Remote address, in the same form.
    pub remote_addr: [u8; 16],
    /// Command, padded with NULs.
    pub comm: [u8; COMM_LEN],
}

// The documentation promises about 128 KB for 1024 queued events. A slot of the channel adds one word.
const _: () = assert!(size_of::<ClassicEvent>() + size_of::<usize>() <= 128);

#[allow(clippy::cast_possible_truncation)] // 128
const TEXT_SIZE: libc::socklen_t = TEXT_LEN as libc::socklen_t;

impl Queued for ClassicEvent {
    fn kind(&self) -> Kind {
        self.kind
    }
}

impl From<&Event> for ClassicEvent {
    fn from(event: &Event) -> Self {
        let snapshot = event.kind == Kind::Snapshot;
        Self {
            time_ns: event.time_ns,
            rx_bytes: event.bytes_received,
            tx_bytes: event.bytes_sent.filter(|_| snapshot).unwrap_or(event.bytes_acked),
            segs_out: if snapshot { event.segs_out } else { event.data_segs_out },
            segs_in: if snapshot { event.segs_in } else { event.data_segs_in },
            pid: event.pid,
            // The structure cannot express an unknown user.
            uid: if event.uid == NO_USER { 0 } else { event.uid },
            family: event.family,
            local_port: event.local_port,
            remote_port: event.remote_port,
            kind: event.kind,
            local_addr: event.local_addr,
            remote_addr: event.remote_addr,
            comm: event.comm,
        }
    }
}

/// Formats an address as inet_ntop(3) does, which formats IPv6. An unknown family gives the empty string.
fn format_address(family: u16, addr: &[u8; 16]) -> [c_char; TEXT_LEN] {
    let mut text = [0; TEXT_LEN];
    if c_int::from(family) == libc::AF_INET {
        format_ipv4(*addr.first_chunk().expect("there are 16"), &mut text);
        return text;
    }
    // SAFETY: `addr` holds the 4 or 16 bytes that the two known families take; for another one inet_ntop reads nothing.
    // `text` is longer than INET6_ADDRSTRLEN, and its true size is given.
    unsafe { inet_ntop(c_int::from(family), addr.as_ptr().cast(), text.as_mut_ptr(), TEXT_SIZE) };
    text
}

/// By hand: the C library's printf, by which its inet_ntop works, was half of all that an event cost its consumer.
fn format_ipv4(addr: [u8; 4], text: &mut [c_char; TEXT_LEN]) {
    let mut places = text.iter_mut();
    let mut put = |byte: u8| {
        if let Some(place) = places.next() {
            *place = c_char::from_ne_bytes([byte]);
        }
    };
    for (number, part) in addr.into_iter().enumerate() {
        if number > 0 {
            put(b'.');
        }
        if part >= 100 {
            put(b'0' + part / 100);
        }
        if part >= 10 {
            put(b'0' + part / 10 % 10);
        }
        put(b'0' + part % 10);
    }
}

/// A command as a C string: cut at the first NUL, and always NUL-terminated.
fn format_comm(comm: [u8; COMM_LEN]) -> [c_char; TEXT_LEN] {
    let mut text = [0; TEXT_LEN];
    for (to, from) in text.iter_mut().zip(comm.iter().take_while(|byte| **byte != 0)) {
        *to = c_char::from_ne_bytes([*from]);
    }
    text
}

impl From<&ClassicEvent> for tcp_event_t {
    fn from(event: &ClassicEvent) -> Self {
        Self {
            EventTime: event.time_ns,
            pid: event.pid,
            UserId: event.uid,
            rx_b: event.rx_bytes,
            tx_b: event.tx_bytes,
            tcpi_segs_out: event.segs_out,
            tcpi_segs_in: event.segs_in,
            family: event.family,
            SPT: event.local_port,
            DPT: event.remote_port,
            task: format_comm(event.comm),
            SADDR: format_address(event.family, &event.local_addr),
            DADDR: format_address(event.family, &event.remote_addr),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    fn text(chars: &[c_char]) -> Vec<u8> {
        chars.iter().take_while(|c| **c != 0).flat_map(|c| c.to_ne_bytes()).collect()
    }

    #[test]
    fn addresses_read_as_inet_ntop_prints_them() {
        let mut v4 = [0; 16];
        v4[..4].copy_from_slice(&[192, 168, 0, 255]);
        assert_eq!(text(&format_address(2, &v4)), b"192.168.0.255");
        for part in 0..=255 {
            let parts = [part, 255 - part, part / 10, part];
            v4[..4].copy_from_slice(&parts);
            assert_eq!(text(&format_address(2, &v4)), std::net::Ipv4Addr::from(parts).to_string().as_bytes());
        }
        let mapped: [u8; 16] = "::ffff:127.0.0.1".parse::<std::net::Ipv6Addr>().unwrap().octets();
        assert_eq!(text(&format_address(10, &mapped)), b"::ffff:127.0.0.1");
        assert_eq!(text(&format_address(10, &[0; 16])), b"::");
        assert_eq!(text(&format_address(10, &[0xfe; 16])), b"fefe:fefe:fefe:fefe:fefe:fefe:fefe:fefe");
        assert_eq!(text(&format_address(77, &v4)), b"");
    }

    #[test]
    fn a_command_of_any_bytes_ends_at_16_with_a_nul() {
        assert_eq!(text(&format_comm(*b"0123456789abcdef")), b"0123456789abcdef");
        assert_eq!(text(&format_comm(*b"sh\0garbage\xff\xff\xff\xff\xff\xff")), b"sh");
        assert_eq!(text(&format_comm([0xff; 16])), [0xff; 16]);
        assert_eq!(format_comm([b'x'; 16])[16], 0);
    }

    #[test]
    fn a_close_counts_what_was_acknowledged_and_a_snapshot_what_was_sent() {
        let counters = Event {
            bytes_received: 1,
            bytes_acked: 2,
            bytes_sent: Some(3),
            segs_out: 4,
            segs_in: 5,
            data_segs_out: 6,
            data_segs_in: 7,
            ..Event::of(Kind::Close)
        };
        let figures = |event: &Event| {
            let event = ClassicEvent::from(event);
            (event.rx_bytes, event.tx_bytes, event.segs_out, event.segs_in)
        };
        assert_eq!(figures(&counters), (1, 2, 6, 7));
        assert_eq!(figures(&Event { kind: Kind::Snapshot, ..counters.clone() }), (1, 3, 4, 5));
        // As on a kernel that does not count the bytes sent.
        assert_eq!(figures(&Event { kind: Kind::Snapshot, bytes_sent: None, ..counters }), (1, 2, 4, 5));
    }

    fn any_event() -> impl Strategy<Value = ClassicEvent> {
        let numbers = any::<([u64; 3], [u32; 4], [u16; 2])>();
        let family = prop_oneof![Just(2u16), Just(10), any::<u16>()];
        // NULs are rare among random bytes.
        let comm = prop::array::uniform16(prop_oneof![1 => Just(0), 9 => any::<u8>()]);
        (numbers, family, any::<[[u8; 16]; 2]>(), comm).prop_map(|((longs, words, halves), family, addrs, comm)| {
            ClassicEvent {
                time_ns: longs[0],
                rx_bytes: longs[1],
                tx_bytes: longs[2],
                segs_out: words[0],
                segs_in: words[1],
                pid: words[2],
                uid: words[3],
                family,
                local_port: halves[0],
                remote_port: halves[1],
                kind: Kind::Close,
                local_addr: addrs[0],
                remote_addr: addrs[1],
                comm,
            }
        })
    }

    proptest! {
        #[test]
        fn hostile_events_give_texts_that_end(event in any_event()) {
            let given = tcp_event_t::from(&event);
            let (task, local, remote) = (given.task, given.SADDR, given.DADDR);
            let name: Vec<u8> = event.comm.iter().copied().take_while(|byte| *byte != 0).collect();
            prop_assert_eq!(text(&task), &name[..]);
            // Nothing of the command's padding leaks past its end.
            prop_assert!(task[name.len()..].iter().all(|c| *c == 0));
            for (addr, text) in [(event.local_addr, text(&local)), (event.remote_addr, text(&remote))] {
                let text = String::from_utf8(text).unwrap();
                let expected: Option<IpAddr> = match event.family {
                    2 => Some(<[u8; 4]>::try_from(&addr[..4]).unwrap().into()),
                    10 => Some(addr.into()),
                    _ => None,
                };
                prop_assert_eq!(text.parse().ok(), expected, "{}", text);
                prop_assert_eq!(text.is_empty(), expected.is_none());
            }
        }
    }
}
