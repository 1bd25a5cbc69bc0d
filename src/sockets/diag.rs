//! sock_diag requests and replies as bytes. Pure: no socket here.

use std::net::IpAddr;

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer, NetlinkHeader, NetlinkMessage,
};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, SOCK_DIAG_BY_FAMILY};
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponseBuffer, InetResponseHeader, SocketId, StateFlags,
};
use netlink_packet_utils::Parseable;
use netlink_packet_utils::nla::{NLA_HEADER_SIZE as ATTRIBUTE_HEADER_LEN, NlasIterator};

use crate::event::{Backlog, Event, Kind, OwnerBy, state};

/// Bytes of `struct nlmsghdr`.
const NETLINK_HEADER_LEN: usize = 16;

/// Bytes of `struct inet_diag_msg`, before its attributes.
const HEADER_LEN: usize = 72;

/// `INET_DIAG_INFO`: the attribute that carries `struct tcp_info`.
const INET_DIAG_INFO: u16 = 2;

/// `INET_DIAG_SKMEMINFO`: an array of words.
const INET_DIAG_SKMEMINFO: u16 = 7;

/// Offset in that array: `SK_MEMINFO_DROPS`.
const DROPS: usize = 8 * 4;

/// `INET_DIAG_CGROUP_ID`: since Linux 5.9.
const INET_DIAG_CGROUP_ID: u16 = 21;

/// Offsets in `struct tcp_info`. The kernel only ever appends to it.
mod tcp_info {
    pub const RTT: usize = 68;
    pub const TOTAL_RETRANS: usize = 100;
    pub const BYTES_ACKED: usize = 120;
    pub const BYTES_RECEIVED: usize = 128;
    pub const SEGS_OUT: usize = 136;
    pub const SEGS_IN: usize = 140;
    pub const NOTSENT_BYTES: usize = 144;
    pub const MIN_RTT: usize = 148;
    pub const DATA_SEGS_IN: usize = 152;
    pub const DATA_SEGS_OUT: usize = 156;
    /// Since Linux 4.19.
    pub const BYTES_SENT: usize = 200;
    pub const BYTES_RETRANS: usize = 208;
}

/// `TCPDIAG_GETSOCK`: the older request, and the type of its replies. It alone lists both families at once.
const TCPDIAG_GETSOCK: u16 = 18;

/// Which sockets to list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// IPv4 and IPv6, mixed.
    Both,
    /// IPv4.
    Inet,
    /// IPv6.
    Inet6,
}

/// A request for all TCP sockets except those in SYN_RECV, TIME_WAIT and CLOSE, with their tcp_info; and with what they have
/// dropped, where that is wanted.
pub fn dump_request(families: Families, with_drops: bool, sequence: u32) -> Vec<u8> {
    let extensions = if with_drops { ExtensionFlags::INFO | ExtensionFlags::SKMEMINFO } else { ExtensionFlags::INFO };
    match families {
        Families::Both => dump_request_of_both(extensions, sequence),
        Families::Inet => request(NLM_F_DUMP, AF_INET, SocketId::new_v4(), extensions, sequence),
        Families::Inet6 => request(NLM_F_DUMP, AF_INET6, SocketId::new_v6(), extensions, sequence),
    }
}

/// `struct inet_diag_req` behind a header: netlink-packet-sock-diag only has the later request.
fn dump_request_of_both(extensions: ExtensionFlags, sequence: u32) -> Vec<u8> {
    const SOCKET_ID_LEN: usize = 48;

    let length = u32::try_from(NETLINK_HEADER_LEN + 4 + SOCKET_ID_LEN + 8).expect("it is short");
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(TCPDIAG_GETSOCK.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    // Port; family, lengths of addresses, extensions; addresses and ports.
    bytes.extend([0; 4]);
    bytes.extend([0, 0, 0, extensions.bits()]);
    bytes.extend([0; SOCKET_ID_LEN]);
    bytes.extend(states().bits().to_ne_bytes());
    bytes.extend([0; 4]);
    bytes
}

fn states() -> StateFlags {
    StateFlags::ESTABLISHED
        | StateFlags::SYN_SENT
        | StateFlags::FIN_WAIT1
        | StateFlags::FIN_WAIT2
        | StateFlags::CLOSE_WAIT
        | StateFlags::LAST_ACK
        | StateFlags::LISTEN
        | StateFlags::CLOSING
}

/// A request for a socket from an earlier listing. Its cookie excludes other sockets with the same addresses.
pub fn request_again(listed: &Event, sequence: u32) -> Vec<u8> {
    let address = |bytes: [u8; 16]| match u8::try_from(listed.family) {
        Ok(AF_INET) => IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]]),
        _ => IpAddr::from(bytes),
    };
    let socket_id = SocketId {
        source_port: listed.local_port,
        destination_port: listed.remote_port,
        source_address: address(listed.local_addr),
        destination_address: address(listed.remote_addr),
        interface_id: 0,
        cookie: listed.cookie.to_ne_bytes(),
    };
    request(0, u8::try_from(listed.family).unwrap_or(AF_INET6), socket_id, ExtensionFlags::INFO, sequence)
}

fn request(flags: u16, family: u8, socket_id: SocketId, extensions: ExtensionFlags, sequence: u32) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    header.sequence_number = sequence;
    let request = InetRequest { family, protocol: IPPROTO_TCP, extensions, states: states(), socket_id };
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// One message of a reply.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply<'buf> {
    /// The payload of a socket's message, for [`parse_socket`].
    Socket(&'buf [u8]),
    /// The dump is complete. 0, or the error that ended it, as a positive errno.
    Done(i32),
    /// The kernel refused the request, as a positive errno.
    Error(i32),
    /// The sockets changed while the kernel listed them: some may be missing.
    Interrupted,
    /// The rest of the datagram is no netlink message.
    Malformed,
}

/// Calls `each` for each message of a datagram that belongs to the dump with this sequence number, in order. Skips
/// messages of other dumps. Stops at the first message with an impossible length.
pub fn for_each_reply<'buf>(mut datagram: &'buf [u8], sequence: u32, mut each: impl FnMut(Reply<'buf>)) {
    while !datagram.is_empty() {
        let Ok(message) = NetlinkBuffer::new_checked(datagram) else {
            return each(Reply::Malformed);
        };
        let length = message.length() as usize;
        if message.sequence_number() == sequence {
            if message.flags() & NLM_F_DUMP_INTR != 0 {
                each(Reply::Interrupted);
            }
            let payload = &datagram[NETLINK_HEADER_LEN..length];
            match message.message_type() {
                SOCK_DIAG_BY_FAMILY | TCPDIAG_GETSOCK => each(Reply::Socket(payload)),
                NLMSG_DONE => each(Reply::Done(errno(payload).unwrap_or(0))),
                // An error of 0 is an acknowledgement.
                NLMSG_ERROR => match errno(payload) {
                    Some(0) => {}
                    Some(code) => each(Reply::Error(code)),
                    None => each(Reply::Malformed),
                },
                _ => {}
            }
        }
        // Messages begin at multiples of 4; the last one need not be padded.
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
}

/// The error code that opens a payload, positive.
fn errno(payload: &[u8]) -> Option<i32> {
    Some(i32::from_ne_bytes(*payload.first_chunk()?).saturating_neg().max(0))
}

/// `struct inet_diag_msg`; `None` if the message is too short.
fn header(payload: &[u8]) -> Option<InetResponseHeader> {
    let buffer = InetResponseBuffer::new_checked(payload.get(..HEADER_LEN)?).ok()?;
    InetResponseHeader::parse(&buffer).ok()
}

/// Reads the payload of one socket's reply: the event without times, namespace and owner. `None` if it is cut short, of
/// another family, without an inode (then no process can hold it) or without tcp_info.
pub fn parse_socket(payload: &[u8]) -> Option<Event> {
    let header = header(payload)?;
    if ![AF_INET, AF_INET6].contains(&header.family) || header.inode == 0 {
        return None;
    }
    let Attributes { info, cgroup, memory } = Attributes::read(&payload[HEADER_LEN..]);
    let backlog = memory.filter(|_| header.state == state::LISTEN).map(|memory| backlog_of(&header, memory));
    Some(Event { backlog, ..event_of(&header, info?, cgroup) })
}

/// Of a listening socket, both queues are those of connections (kernel: tcp_diag_get_info).
fn backlog_of(header: &InetResponseHeader, memory: &[u8]) -> Backlog {
    Backlog {
        waiting: header.recv_queue,
        most: header.send_queue,
        dropped: read_u32(memory, DROPS).unwrap_or(0),
        newly_dropped: 0,
    }
}

/// A freed socket.
#[derive(Debug, PartialEq, Eq)]
pub struct Destroyed {
    /// Its last counters. The state is usually CLOSE; inode and user are missing.
    pub event: Event,
    /// Bytes in its send queue at the end, FIN included.
    pub not_acked: u32,
    /// The part of `not_acked` that was never sent.
    pub not_sent: u32,
    /// Received bytes that no process has read, FIN included.
    pub not_read: u32,
}

/// Reads the payload of a notification that a socket was freed. `None` if it is cut short, of another family, or has no
/// tcp_info.
pub fn parse_destroyed(payload: &[u8]) -> Option<Destroyed> {
    let header = header(payload)?;
    if ![AF_INET, AF_INET6].contains(&header.family) {
        return None;
    }
    let Attributes { info, cgroup, .. } = Attributes::read(&payload[HEADER_LEN..]);
    let info = info?;
    Some(Destroyed {
        event: event_of(&header, info, cgroup),
        not_acked: header.send_queue,
        not_read: header.recv_queue,
        not_sent: read_u32(info, tcp_info::NOTSENT_BYTES).unwrap_or(0),
    })
}

fn event_of(header: &InetResponseHeader, info: &[u8], cgroup: Option<&[u8]>) -> Event {
    let word = |offset| read_u32(info, offset).unwrap_or(0);
    let long = |offset| read_u64(info, offset);
    let bytes_received = long(tcp_info::BYTES_RECEIVED).unwrap_or(0);
    let bytes_sent = long(tcp_info::BYTES_SENT);
    let bytes_retransmitted = long(tcp_info::BYTES_RETRANS).unwrap_or(0);
    let payload_sent = bytes_sent.unwrap_or(0).saturating_sub(bytes_retransmitted);
    let fin_received = matches!(header.state, state::CLOSE_WAIT | state::CLOSING | state::LAST_ACK);
    let min_rtt_us = word(tcp_info::MIN_RTT);
    Event {
        cookie: u64::from_ne_bytes(header.socket_id.cookie),
        cgroup: cgroup.and_then(|id| read_u64(id, 0)).unwrap_or(0),
        inode: header.inode.into(),
        payload_received: bytes_received.saturating_sub(fin_received.into()),
        payload_sent,
        payload_acked: payload_sent.saturating_sub(in_flight(header, word(tcp_info::NOTSENT_BYTES))),
        bytes_received,
        bytes_acked: long(tcp_info::BYTES_ACKED).unwrap_or(0),
        bytes_sent,
        bytes_retransmitted,
        segs_out: word(tcp_info::SEGS_OUT),
        segs_in: word(tcp_info::SEGS_IN),
        data_segs_out: word(tcp_info::DATA_SEGS_OUT),
        data_segs_in: word(tcp_info::DATA_SEGS_IN),
        segs_retransmitted: word(tcp_info::TOTAL_RETRANS),
        srtt_us: word(tcp_info::RTT),
        min_rtt_us: if min_rtt_us == u32::MAX { 0 } else { min_rtt_us },
        uid: header.uid,
        owner_by: OwnerBy::Inode,
        old_state: header.state,
        new_state: header.state,
        family: u16::from(header.family),
        local_port: header.socket_id.source_port,
        remote_port: header.socket_id.destination_port,
        local_addr: octets(header.socket_id.source_address),
        remote_addr: octets(header.socket_id.destination_address),
        ..Event::of(Kind::Snapshot)
    }
}

/// Payload sent but not acknowledged. The send queue is everything not acknowledged, sent or not, FIN included; a
/// listener's means something else.
fn in_flight(header: &InetResponseHeader, not_sent: u32) -> u64 {
    if header.state == state::LISTEN {
        return 0;
    }
    let fin_sent = matches!(header.state, state::FIN_WAIT1 | state::CLOSING | state::LAST_ACK) && not_sent == 0;
    header.send_queue.saturating_sub(not_sent).saturating_sub(fin_sent.into()).into()
}

/// The attributes that are used: the last one of each kind.
#[derive(Default)]
struct Attributes<'buf> {
    info: Option<&'buf [u8]>,
    cgroup: Option<&'buf [u8]>,
    memory: Option<&'buf [u8]>,
}

impl<'buf> Attributes<'buf> {
    /// Attributes after one with an impossible length cannot be located and are ignored.
    fn read(bytes: &'buf [u8]) -> Self {
        let mut found = Self::default();
        for attribute in NlasIterator::new(bytes).map_while(Result::ok) {
            let place = match attribute.kind() {
                INET_DIAG_INFO => &mut found.info,
                INET_DIAG_CGROUP_ID => &mut found.cgroup,
                INET_DIAG_SKMEMINFO => &mut found.memory,
                _ => continue,
            };
            // The iterator has checked the length, but returns everything up to the end of the message.
            let length = usize::from(attribute.length());
            let attribute: &[u8] = attribute.into_inner();
            *place = Some(&attribute[ATTRIBUTE_HEADER_LEN..length]);
        }
        found
    }
}

fn read_u32(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

fn read_u64(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&v4.octets());
            bytes
        }
        IpAddr::V6(v6) => v6.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::Index;

    /// A reply's payload: an IPv4 socket, inode 77, uid 1000, 10.0.0.1:8080 to 10.0.0.2:443.
    fn socket(family: u8, attributes: &[u8]) -> Vec<u8> {
        let mut bytes = vec![family, 1, 0, 0];
        bytes.extend(8080u16.to_be_bytes());
        bytes.extend(443u16.to_be_bytes());
        bytes.extend([10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend([10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend([0; 4]);
        bytes.extend(0x0102_0304_0506_0708u64.to_ne_bytes());
        for word in [0u32, 0, 2_100, 1000, 77] {
            bytes.extend(word.to_ne_bytes());
        }
        assert_eq!(bytes.len(), HEADER_LEN);
        bytes.extend(attributes);
        bytes
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(u16::try_from(value.len() + 4).unwrap().to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    /// A tcp_info of `len` bytes with known counters.
    fn tcp_info(len: usize) -> Vec<u8> {
        let mut info = vec![0xee; 280];
        info[68..72].copy_from_slice(&250u32.to_ne_bytes());
        info[100..104].copy_from_slice(&1u32.to_ne_bytes());
        info[120..128].copy_from_slice(&5_001u64.to_ne_bytes());
        info[128..136].copy_from_slice(&70_000u64.to_ne_bytes());
        info[136..140].copy_from_slice(&6u32.to_ne_bytes());
        info[140..144].copy_from_slice(&3u32.to_ne_bytes());
        info[144..148].copy_from_slice(&100u32.to_ne_bytes());
        info[148..152].copy_from_slice(&40u32.to_ne_bytes());
        info[152..156].copy_from_slice(&2u32.to_ne_bytes());
        info[156..160].copy_from_slice(&5u32.to_ne_bytes());
        info[200..208].copy_from_slice(&74_536u64.to_ne_bytes());
        info[208..216].copy_from_slice(&536u64.to_ne_bytes());
        info.truncate(len);
        info
    }

    fn message(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(u32::try_from(payload.len() + 16).unwrap().to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn replies(datagram: &[u8], sequence: u32) -> Vec<Reply<'_>> {
        let mut all = Vec::new();
        for_each_reply(datagram, sequence, |reply| all.push(reply));
        all
    }

    #[test]
    fn the_request_is_the_kernels_structure() {
        let bytes = dump_request(Families::Inet6, true, 9);
        assert_eq!(bytes.len(), 72);
        assert_eq!(bytes[..4], 72u32.to_ne_bytes());
        assert_eq!(bytes[4..6], 20u16.to_ne_bytes());
        assert_eq!(bytes[6..8], 0x301u16.to_ne_bytes());
        assert_eq!(bytes[8..12], 9u32.to_ne_bytes());
        // Family, protocol, the bits of INET_DIAG_INFO and INET_DIAG_SKMEMINFO, padding, and 0xfff without SYN_RECV, TIME_WAIT,
        // CLOSE, 0.
        assert_eq!(bytes[16..20], [10, 6, 2 | 64, 0]);
        assert_eq!(bytes[20..24], (0xfffu32 & !(1 | 1 << 3 | 1 << 6 | 1 << 7)).to_ne_bytes());
        assert_eq!(bytes[24..28], [0; 4]);
    }

    /// The queues of any other socket are bytes.
    #[test]
    fn a_listening_sockets_backlog_is_read_and_no_others() {
        let memory: Vec<u8> = (1..=9u32).flat_map(u32::to_ne_bytes).collect();
        let attributes = [attribute(INET_DIAG_INFO, &tcp_info(280)), attribute(INET_DIAG_SKMEMINFO, &memory)].concat();
        for (state, expected) in [
            (state::LISTEN, Some(Backlog { waiting: 3, most: 128, dropped: 9, newly_dropped: 0 })),
            (state::ESTABLISHED, None),
        ] {
            let mut payload = socket(AF_INET, &attributes);
            payload[1] = state;
            payload[56..60].copy_from_slice(&3u32.to_ne_bytes());
            payload[60..64].copy_from_slice(&128u32.to_ne_bytes());
            assert_eq!(parse_socket(&payload).unwrap().backlog, expected);
            // It was not asked for.
            let mut payload = socket(AF_INET, &attribute(INET_DIAG_INFO, &tcp_info(280)));
            payload[1] = state;
            assert_eq!(parse_socket(&payload).unwrap().backlog, None);
        }
    }

    #[test]
    fn the_request_for_both_families_is_the_kernels_older_structure() {
        let bytes = dump_request(Families::Both, false, 9);
        assert_eq!(bytes.len(), 76);
        assert_eq!(bytes[..4], 76u32.to_ne_bytes());
        assert_eq!(bytes[4..6], 18u16.to_ne_bytes());
        assert_eq!(bytes[6..8], 0x301u16.to_ne_bytes());
        assert_eq!(bytes[8..12], 9u32.to_ne_bytes());
        assert_eq!(bytes[16..20], [0, 0, 0, 2]);
        assert_eq!(bytes[68..72], (0xfffu32 & !(1 | 1 << 3 | 1 << 6 | 1 << 7)).to_ne_bytes());
        assert!(bytes[20..68].iter().chain(&bytes[72..]).all(|byte| *byte == 0));
    }

    #[test]
    fn a_socket_is_read_field_by_field() {
        let mut attributes = attribute(2, &tcp_info(232));
        attributes.extend(attribute(21, &815u64.to_ne_bytes()));
        let event = parse_socket(&socket(2, &attributes)).unwrap();
        assert_eq!((event.inode, event.uid, event.family), (77, 1000, 2));
        assert_eq!((event.local_port, event.remote_port), (8080, 443));
        assert_eq!(event.local_addr[..5], [10, 0, 0, 1, 0]);
        assert_eq!(event.remote_addr[..5], [10, 0, 0, 2, 0]);
        assert_eq!((event.bytes_received, event.bytes_acked, event.bytes_sent), (70_000, 5_001, Some(74_536)));
        assert_eq!((event.segs_out, event.segs_in, event.data_segs_out, event.data_segs_in), (6, 3, 5, 2));
        assert_eq!((event.bytes_retransmitted, event.segs_retransmitted), (536, 1));
        assert_eq!((event.srtt_us, event.min_rtt_us), (250, 40));
        assert_eq!((event.cookie, event.cgroup), (0x0102_0304_0506_0708, 815));
        assert_eq!((event.kind, event.old_state, event.new_state), (Kind::Snapshot, 1, 1));
        // 2,100 bytes are not acknowledged; 100 of them were not even sent.
        assert_eq!((event.payload_received, event.payload_sent, event.payload_acked), (70_000, 74_000, 72_000));
    }

    #[test]
    fn payload_is_without_fin() {
        let payload = |state: u8, not_sent: u32| {
            let mut info = tcp_info(232);
            info[144..148].copy_from_slice(&not_sent.to_ne_bytes());
            let mut bytes = socket(2, &attribute(2, &info));
            bytes[1] = state;
            let event = parse_socket(&bytes).unwrap();
            (event.payload_received, event.payload_acked)
        };
        assert_eq!(payload(state::ESTABLISHED, 0), (70_000, 71_900));
        assert_eq!(payload(state::CLOSE_WAIT, 0), (69_999, 71_900));
        // A FIN in flight, and one that was not sent yet.
        assert_eq!(payload(state::FIN_WAIT1, 0), (70_000, 71_901));
        assert_eq!(payload(state::LAST_ACK, 100), (69_999, 72_000));
        // A listener's queues mean something else.
        assert_eq!(payload(state::LISTEN, 0), (70_000, 74_000));
    }

    #[test]
    fn a_tcp_info_of_an_old_kernel_gives_what_it_has() {
        let counters = |len| {
            let event = parse_socket(&socket(2, &attribute(2, &tcp_info(len)))).unwrap();
            (event.bytes_received, event.bytes_acked, event.bytes_sent, event.segs_out, event.segs_in)
        };
        // Linux 4.9's tcp_info ends after delivery_rate.
        assert_eq!(counters(168), (70_000, 5_001, None, 6, 3));
        // Cut in the middle of bytes_received.
        assert_eq!(counters(130), (0, 5_001, None, 0, 0));
        assert_eq!(counters(0), (0, 0, None, 0, 0));
    }

    #[test]
    fn unknown_attributes_are_passed_over() {
        let mut attributes = attribute(200, &[1, 2, 3]);
        attributes.extend(attribute(2, &tcp_info(232)));
        attributes.extend(attribute(8, &[0]));
        assert_eq!(parse_socket(&socket(10, &attributes)).unwrap().bytes_received, 70_000);
    }

    #[test]
    fn hostile_attribute_lengths_end_the_list() {
        for length in [0u16, 1, 3, 300, u16::MAX] {
            let mut attributes = attribute(2, &tcp_info(232));
            attributes[..2].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(parse_socket(&socket(2, &attributes)), None, "length {length}");
            // An attribute before it still counts.
            let mut behind = attribute(2, &tcp_info(232));
            behind.extend(&attributes);
            assert!(parse_socket(&socket(2, &behind)).is_some(), "length {length}");
        }
    }

    #[test]
    fn no_socket_where_there_is_no_inode_no_info_or_no_such_family() {
        let mut orphan = socket(2, &attribute(2, &tcp_info(232)));
        orphan[68..72].fill(0);
        assert_eq!(parse_socket(&orphan), None);
        assert_eq!(parse_socket(&socket(2, &attribute(8, &[0]))), None);
        assert_eq!(parse_socket(&socket(1, &attribute(2, &tcp_info(232)))), None);
        let whole = socket(2, &attribute(2, &tcp_info(232)));
        for len in 0..HEADER_LEN {
            assert_eq!(parse_socket(&whole[..len]), None, "{len} bytes");
        }
    }

    #[test]
    fn a_destroyed_socket_needs_no_inode() {
        let mut bytes = socket(10, &attribute(2, &tcp_info(232)));
        bytes[1] = state::CLOSE;
        bytes[68..72].fill(0);
        let destroyed = parse_destroyed(&bytes).unwrap();
        assert_eq!((destroyed.not_acked, destroyed.not_sent, destroyed.not_read), (2_100, 100, 0));
        let event = destroyed.event;
        assert_eq!((event.family, event.local_port, event.remote_port), (10, 8080, 443));
        assert_eq!((event.bytes_received, event.bytes_acked, event.bytes_sent), (70_000, 5_001, Some(74_536)));
        assert_eq!((event.inode, event.cookie), (0, 0x0102_0304_0506_0708));
        // As Linux 4.9 sends it.
        let destroyed = parse_destroyed(&socket(2, &attribute(2, &tcp_info(168)))).unwrap();
        assert_eq!((destroyed.event.bytes_received, destroyed.event.bytes_sent), (70_000, None));
        for len in 0..HEADER_LEN {
            assert_eq!(parse_destroyed(&bytes[..len]), None, "{len} bytes");
        }
        assert_eq!(parse_destroyed(&socket(2, &attribute(8, &[0]))), None);
    }

    #[test]
    fn a_datagram_is_taken_apart() {
        let mut datagram = message(20, 2, 5, b"abcdef");
        datagram.extend(message(20, 2, 4, b"of another dump"));
        datagram.extend(message(20, 2 | 0x10, 5, b"xyz"));
        datagram.extend(message(3, 2, 5, &0i32.to_ne_bytes()));
        assert_eq!(
            replies(&datagram, 5),
            [Reply::Socket(b"abcdef"), Reply::Interrupted, Reply::Socket(b"xyz"), Reply::Done(0)]
        );
        assert_eq!(replies(&message(2, 0, 5, &(-2i32).to_ne_bytes()), 5), [Reply::Error(2)]);
        assert_eq!(replies(&message(2, 0, 5, &0i32.to_ne_bytes()), 5), []);
        assert_eq!(replies(&message(2, 0, 5, &[1]), 5), [Reply::Malformed]);
        assert_eq!(replies(&message(3, 0, 5, &(-105i32).to_ne_bytes()), 5), [Reply::Done(105)]);
    }

    #[test]
    fn hostile_message_lengths_end_the_datagram() {
        for length in [0u32, 1, 15, 4000, u32::MAX] {
            let mut datagram = message(20, 2, 5, b"good");
            let mut bad = message(20, 2, 5, b"bad!");
            bad[..4].copy_from_slice(&length.to_ne_bytes());
            datagram.extend(bad);
            assert_eq!(replies(&datagram, 5), [Reply::Socket(b"good"), Reply::Malformed], "length {length}");
        }
    }

    /// A correct length field, or an arbitrary one.
    fn length_or_not<T: Arbitrary + Clone>() -> impl Strategy<Value = Option<T>> {
        prop_oneof![4 => Just(None), 1 => any::<T>().prop_map(Some)]
    }

    fn cut(bytes: &mut Vec<u8>, by: usize) {
        bytes.truncate(bytes.len().saturating_sub(by));
    }

    /// How many bytes are missing at the end: usually none.
    fn missing() -> impl Strategy<Value = usize> {
        prop_oneof![4 => Just(0usize), 1 => 1usize..64]
    }

    prop_compose! {
        /// An attribute, possibly with a wrong length: a tcp_info of any size, or another kind that holds more.
        fn any_attribute()(
            kind in prop_oneof![3 => Just(INET_DIAG_INFO), 1 => any::<u16>()],
            value in prop_oneof![
                (0usize..=280).prop_map(tcp_info),
                vec(any::<u8>(), 0..40),
                (0usize..=280).prop_map(|len| attribute(INET_DIAG_INFO, &tcp_info(len))),
            ],
            length in length_or_not::<u16>(),
        ) -> Vec<u8> {
            let mut bytes = attribute(kind, &value);
            if let Some(length) = length {
                bytes[..2].copy_from_slice(&length.to_ne_bytes());
            }
            bytes
        }
    }

    prop_compose! {
        /// The payload of a socket's reply, whose attributes may be cut anywhere.
        fn any_payload()(
            family in prop_oneof![Just(2u8), Just(10), any::<u8>()],
            attributes in vec(any_attribute(), 0..4),
            missing in missing(),
        ) -> Vec<u8> {
            let mut bytes = socket(family, &attributes.concat());
            cut(&mut bytes, missing);
            bytes
        }
    }

    prop_compose! {
        /// A message, possibly with a wrong length.
        fn any_message()(
            kind in prop_oneof![4 => Just(SOCK_DIAG_BY_FAMILY), 1 => Just(NLMSG_ERROR), 1 => Just(NLMSG_DONE), 1 => any::<u16>()],
            flags in prop_oneof![Just(2u16), Just(0x12), any::<u16>()],
            sequence in 4u32..7,
            payload in prop_oneof![4 => any_payload(), 1 => vec(any::<u8>(), 0..8)],
            length in length_or_not::<u32>(),
            near in length_or_not::<u8>(),
        ) -> Vec<u8> {
            let mut bytes = message(kind, flags, sequence, &payload);
            // A length near the true one gets further than most.
            if let Some(length) = length.or(near.map(u32::from)) {
                bytes[..4].copy_from_slice(&length.to_ne_bytes());
            }
            bytes
        }
    }

    /// What holds for any datagram.
    fn check(datagram: &[u8]) -> Result<(), TestCaseError> {
        let all = replies(datagram, 5);
        // A message has at least 16 bytes, and gives at most two replies.
        prop_assert!(all.len() <= datagram.len() / NETLINK_HEADER_LEN * 2 + 1);
        for reply in &all {
            match reply {
                Reply::Socket(payload) => {
                    prop_assert!(datagram.as_ptr_range().contains(&payload.as_ptr()) || payload.is_empty());
                    let destroyed = parse_destroyed(payload);
                    if let Some(event) = parse_socket(payload) {
                        prop_assert!(event.inode != 0);
                        prop_assert!(event.family == 2 || event.family == 10);
                        prop_assert_eq!(destroyed.map(|destroyed| destroyed.event), Some(event));
                    }
                }
                Reply::Done(errno) | Reply::Error(errno) => prop_assert!(*errno >= 0),
                Reply::Interrupted | Reply::Malformed => {}
            }
        }
        Ok(())
    }

    proptest! {
        /// Several messages, each with possibly wrong lengths at each level, in a datagram that may be cut and have
        /// other bytes anywhere.
        #[test]
        fn hostile_replies_end(
            messages in vec(any_message(), 0..5),
            missing in missing(),
            last_is_honest: bool,
            flips in vec((any::<Index>(), any::<u8>()), 0..3),
        ) {
            let mut datagram = messages.concat();
            cut(&mut datagram, missing);
            let last = messages.iter().rev().skip(1).map(Vec::len).sum();
            match datagram.get_mut(last..) {
                Some(message) if last_is_honest && message.len() >= NETLINK_HEADER_LEN => {
                    let length = u32::try_from(message.len()).unwrap();
                    message[..4].copy_from_slice(&length.to_ne_bytes());
                }
                _ => {}
            }
            if !datagram.is_empty() {
                for (at, to) in flips {
                    *at.get_mut(&mut datagram) = to;
                }
            }
            check(&datagram)?;
        }

        #[test]
        fn hostile_datagrams_end(datagram in vec(any::<u8>(), 0..512)) {
            check(&datagram)?;
        }

        #[test]
        fn hostile_attributes_end(attributes in vec(any::<u8>(), 0..512), flip in 0usize..72, to: u8) {
            let mut bytes = socket(2, &attributes);
            bytes[flip] = to;
            if let Some(event) = parse_socket(&bytes) {
                prop_assert!(event.inode != 0);
            }
        }
    }
}
