//! Ring record to [`Event`]. Pure: it knows neither libbpf nor the ring, and takes any bytes.

use zerocopy::FromBytes;

use crate::event::{Begin, Direction, Ending, Event, Failure, Kind, NO_USER, OwnerBy, state};
pub use crate::sys::shared::tcp_let_go as LetGo;
use crate::sys::shared::{
    TCP_DIRECTION_ACCEPTED, TCP_DIRECTION_CONNECTED, TCP_DIRECTION_UNKNOWN, TCP_FLAG_BEING_CLOSED, TCP_FLAG_ERROR_SOFT,
    TCP_FLAG_ERROR_UNKNOWN, TCP_FLAG_FIN_RECEIVED, TCP_FLAG_WITHIN_CONNECT, TCP_NO_USER, TCP_ORIGIN_ACCEPT,
    TCP_ORIGIN_CLOSE, TCP_ORIGIN_CONNECT, TCP_ORIGIN_HELD, TCP_ORIGIN_INODE, TCP_ORIGIN_NONE, tcp_detailed_record,
    tcp_record,
};

const _: () = assert!(TCP_NO_USER == NO_USER);

/// An event, and what is still needed to name its owner.
#[derive(Debug, PartialEq, Eq)]
pub struct Decoded {
    /// The event. Its wall-clock time is for the clock to fill in.
    pub event: Event,
    /// No process was seen to act on the endpoint: look its inode up, where this is not 0.
    pub unowned_inode: Option<u64>,
    /// On close: the peer's FIN is in `bytes_received`.
    pub fin_received: bool,
    /// On close: the process that still holds the socket is the owner, whoever `event` names.
    pub held: bool,
}

impl LetGo {
    /// Reads one. `None` where the bytes are one of the other records.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() >= RECORD_LEN {
            return None;
        }
        Self::read_from_prefix(bytes).ok().map(|(let_go, _)| let_go)
    }
}

/// Bytes of a plain record.
pub const RECORD_LEN: usize = size_of::<tcp_record>();

/// Bytes of a detailed one.
pub const DETAILED_RECORD_LEN: usize = size_of::<tcp_detailed_record>();

/// Where a connection is that sends.
pub struct Sequence {
    /// The first byte that is not acknowledged.
    pub acked: u32,
    /// The first one that is not sent.
    pub sent: u32,
    /// The first one that is not there yet.
    pub written: u32,
}

/// Decodes one record, of either kind. `None` where it is too short or holds what no probe of this library writes.
pub fn decode(bytes: &[u8]) -> Option<Decoded> {
    let (record, rest) = tcp_record::read_from_prefix(bytes).ok()?;
    let owner_by = match record.origin & !TCP_ORIGIN_HELD {
        TCP_ORIGIN_NONE => OwnerBy::Unknown,
        TCP_ORIGIN_CONNECT => OwnerBy::Connect,
        TCP_ORIGIN_ACCEPT => OwnerBy::Accept,
        TCP_ORIGIN_CLOSE => OwnerBy::Close,
        TCP_ORIGIN_INODE => OwnerBy::Inode,
        _ => return None,
    };
    if i32::from(record.family) != libc::AF_INET && i32::from(record.family) != libc::AF_INET6 {
        return None;
    }
    let mut event = Event {
        monotonic_ns: record.time_ns,
        inode: record.inode,
        bytes_received: record.bytes_received,
        bytes_acked: record.bytes_acked,
        data_segs_out: record.data_segs_out,
        data_segs_in: record.data_segs_in,
        pid: record.pid,
        uid: record.uid,
        begin: if record.birth_ns == 0 { Begin::Older } else { Begin::Seen },
        owner_by,
        old_state: record.old_state,
        new_state: state::CLOSE,
        family: record.family,
        local_port: record.local_port,
        remote_port: record.remote_port,
        local_addr: record.local_addr,
        remote_addr: record.remote_addr,
        comm: record.comm,
        ..Event::of(Kind::Close)
    };
    let held = record.origin & TCP_ORIGIN_HELD != 0;
    let mut fin_received = false;
    if !rest.is_empty() {
        let (detail, _) = tcp_detailed_record::read_from_prefix(bytes).ok()?;
        add_detail(&mut event, record.birth_ns, &detail)?;
        fin_received = detail.flags & TCP_FLAG_FIN_RECEIVED != 0;
    }
    Some(Decoded { unowned_inode: (owner_by == OwnerBy::Unknown).then_some(record.inode), event, fin_received, held })
}

/// `None` where there is no such direction.
fn add_detail(event: &mut Event, birth_ns: u64, detail: &tcp_detailed_record) -> Option<()> {
    let has = |flag| detail.flags & flag != 0;

    event.direction = match detail.direction {
        TCP_DIRECTION_UNKNOWN => Direction::Unknown,
        TCP_DIRECTION_CONNECTED => Direction::Connected,
        TCP_DIRECTION_ACCEPTED => Direction::Accepted,
        _ => return None,
    };
    event.new_state = detail.new_state;
    event.cookie = detail.cookie;
    event.cgroup = detail.cgroup;
    event.netns = detail.netns;
    if event.direction == Direction::Connected && birth_ns != 0 && detail.established_ns != 0 {
        event.establish_ns = detail.established_ns.saturating_sub(birth_ns);
    }
    // No process has it in its hands: it has neither connected, nor accepted it before the handshake was over (Fast Open).
    let aborted_handshake = event.old_state == state::SYN_RECV
        && event.direction != Direction::Connected
        && event.owner_by == OwnerBy::Unknown
        && event.inode == 0;
    // The kernel tells of no such change.
    if event.old_state == state::CLOSE && event.new_state == state::CLOSE {
        event.kind = Kind::Unsent;
        event.begin = Begin::Seen;
        event.failure = Failure::Network;
        event.error = detail.err;
        return Some(());
    }
    let is_retry = event.old_state == state::SYN_SENT && event.new_state == state::SYN_SENT;
    if is_retry {
        event.kind = Kind::Retry;
    } else if event.new_state != state::CLOSE || event.old_state == state::LISTEN || aborted_handshake {
        event.kind = Kind::State;
        // A listening socket is no connection, of whatever age.
        if event.old_state == state::LISTEN || event.new_state == state::LISTEN {
            event.begin = Begin::Seen;
        }
        return Some(());
    }

    if birth_ns != 0 {
        event.age_ns = event.monotonic_ns.saturating_sub(birth_ns);
    }
    let unanswered = event.old_state == state::SYN_SENT
        || (event.old_state == state::SYN_RECV
            && event.direction == Direction::Connected
            && detail.established_ns == 0);
    // The kernel sets an error before it ends an attempt by itself, and none where the program does. Within connect()
    // it may end one that could not even begin: without an error too, but the program has not had it yet to give up.
    let ended_by_error = detail.err != 0 && !has(TCP_FLAG_ERROR_SOFT);
    let given_up = has(TCP_FLAG_BEING_CLOSED)
        || (!ended_by_error && !has(TCP_FLAG_WITHIN_CONNECT) && !has(TCP_FLAG_ERROR_UNKNOWN));
    event.failure = match (unanswered && !is_retry, given_up) {
        (false, _) => Failure::None,
        (true, false) => Failure::Network,
        (true, true) => Failure::GivenUp,
    };
    event.error = detail.err;
    event.error_unknown = has(TCP_FLAG_ERROR_UNKNOWN);

    if !unanswered {
        event.ending = Ending::of(detail, event.direction, (!event.error_unknown).then_some(detail.err));
    }

    event.bytes_sent = Some(detail.bytes_sent);
    event.bytes_retransmitted = detail.bytes_retrans;
    event.segs_retransmitted = detail.total_retrans;
    event.segs_out = detail.segs_out;
    event.segs_in = detail.segs_in;
    event.srtt_us = detail.srtt_us >> 3;
    event.min_rtt_us = if detail.min_rtt_us == u32::MAX { 0 } else { detail.min_rtt_us };
    event.payload_received = event.bytes_received.saturating_sub(has(TCP_FLAG_FIN_RECEIVED).into());
    event.payload_sent = detail.bytes_sent.saturating_sub(detail.bytes_retrans);
    let sequence = Sequence { acked: detail.snd_una, sent: detail.snd_nxt, written: detail.write_seq };
    // Nothing is acknowledged of an attempt that is not answered; what is in flight is a SYN.
    event.payload_acked = payload_acked(event, &sequence, unanswered);
    // Before Linux 4.19 the kernel does not count it.
    if detail.bytes_sent == 0 && !unanswered {
        event.payload_sent = event.payload_acked.saturating_add(payload_in_flight(event, &sequence));
    }
    Some(())
}

/// Whether the connection's own FIN is sent, and acknowledged.
fn fin(event: &Event, sequence: &Sequence) -> (bool, bool) {
    let queued = matches!(event.old_state, state::FIN_WAIT1 | state::FIN_WAIT2 | state::CLOSING | state::LAST_ACK);
    (queued && sequence.sent == sequence.written, queued && sequence.acked == sequence.written)
}

fn payload_in_flight(event: &Event, sequence: &Sequence) -> u64 {
    let (fin_sent, fin_acked) = fin(event, sequence);
    u64::from(sequence.sent.wrapping_sub(sequence.acked)).saturating_sub((fin_sent && !fin_acked).into())
}

/// Sequence numbers count SYN and FIN as a byte each, and so does `bytes_acked`.
pub fn payload_acked(event: &Event, sequence: &Sequence, failed: bool) -> u64 {
    let (fin_sent, fin_acked) = fin(event, sequence);
    let syn_acked = match event.direction {
        Direction::Connected if failed => false,
        // The kernel begins to count behind the SYN.
        Direction::Accepted => false,
        // Whatever is acknowledged beyond what was sent. A connection that is restored (TCP_REPAIR) sends no SYN.
        Direction::Connected | Direction::Unknown => {
            let in_flight = u64::from(sequence.sent.wrapping_sub(sequence.acked));
            event.bytes_acked.saturating_add(in_flight) > event.payload_sent.saturating_add(u64::from(fin_sent))
        }
    };
    event.bytes_acked.saturating_sub(u64::from(syn_acked) + u64::from(fin_acked))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Known;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::Index;
    use std::mem::offset_of;
    use zerocopy::{FromZeros, IntoBytes};

    const RECORD: usize = RECORD_LEN;
    const DETAIL: usize = DETAILED_RECORD_LEN - RECORD_LEN;

    const FAMILY: usize = offset_of!(tcp_record, family);
    const ORIGIN: usize = offset_of!(tcp_record, origin);
    const DIRECTION: usize = offset_of!(tcp_detailed_record, direction);

    /// Each field is named: one that is new to `bpf/tcp_event.h` must be here too, and be looked for below.
    fn plain() -> tcp_record {
        tcp_record {
            time_ns: 111,
            birth_ns: 22,
            bytes_received: 70_001,
            bytes_acked: 5_002,
            inode: 0,
            data_segs_out: 4,
            data_segs_in: 3,
            pid: 1234,
            uid: 1000,
            family: 2,
            local_port: 8080,
            remote_port: 443,
            origin: 1,
            old_state: 9,
            local_addr: [127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            remote_addr: [10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            comm: *b"curl\0\0\0\0\0\0\0\0\0\0\0\0",
        }
    }

    fn sample() -> Vec<u8> {
        plain().as_bytes().to_vec()
    }

    #[test]
    fn every_field_lands_where_it_belongs() {
        let closed = decode(&sample()).unwrap();
        assert_eq!(closed.unowned_inode, None);
        let event = closed.event;
        assert_eq!(event.monotonic_ns, 111);
        assert_eq!((event.bytes_received, event.bytes_acked), (70_001, 5_002));
        assert_eq!((event.data_segs_out, event.data_segs_in), (4, 3));
        assert_eq!((event.pid, event.uid), (1234, 1000));
        assert_eq!((event.family, event.local_port, event.remote_port), (2, 8080, 443));
        assert_eq!(event.local_addr[..4], [127, 0, 0, 1]);
        assert_eq!(event.remote_addr[..4], [10, 0, 0, 2]);
        assert_eq!(event.comm, *b"curl\0\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!((event.kind, event.owner_by), (Kind::Close, OwnerBy::Connect));
        assert_eq!((event.old_state, event.new_state), (state::LAST_ACK, state::CLOSE));
    }

    #[test]
    fn an_unowned_endpoint_asks_for_its_inode() {
        let closed = decode(tcp_record { inode: 4711, origin: 0, ..plain() }.as_bytes()).unwrap();
        assert_eq!(closed.unowned_inode, Some(4711));
        assert_eq!(closed.event.owner_by, OwnerBy::Unknown);
    }

    #[test]
    fn nobody_is_not_root() {
        let event = decode(tcp_record { uid: TCP_NO_USER, ..plain() }.as_bytes()).unwrap().event;
        assert!(event.uid == NO_USER && !event.known().contains(Known::UID), "{event:#?}");
        let event = decode(tcp_record { uid: 0, ..plain() }.as_bytes()).unwrap().event;
        assert!(event.known().contains(Known::UID), "{event:#?}");
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
        assert_eq!(decode(tcp_record { origin: 5, ..plain() }.as_bytes()), None);
        assert_eq!(decode(tcp_record { family: 1, ..plain() }.as_bytes()), None);
    }

    #[test]
    fn counters_at_their_most_do_not_wrap() {
        for direction in [0, 1, 2] {
            let sequence = [0, u32::MAX, 0];
            let sample = Sample { direction, bytes_acked: u64::MAX, bytes_sent: [0, 0], sequence, ..Sample::default() };
            let event = sample.decoded();
            assert!(event.payload_acked >= u64::MAX - 2, "{event:#?}");
            assert_eq!(event.payload_sent, u64::MAX, "{event:#?}");
        }
    }

    /// What may be said of any bytes.
    fn check(bytes: &[u8]) -> Result<(), TestCaseError> {
        let whole = bytes.len() == RECORD || bytes.len() >= RECORD + DETAIL;
        let valid = whole
            && bytes[ORIGIN] & !TCP_ORIGIN_HELD <= 4
            && [[2, 0], [10, 0]].contains(&[bytes[FAMILY], bytes[FAMILY + 1]])
            && (bytes.len() == RECORD || bytes[DIRECTION] <= 2);
        let closed = decode(bytes);
        prop_assert_eq!(closed.is_some(), valid);
        if let Some(Decoded { event, unowned_inode, .. }) = closed {
            prop_assert_eq!(&event.monotonic_ns.to_ne_bytes(), &bytes[..8]);
            prop_assert_eq!(&event.pid.to_ne_bytes(), &bytes[offset_of!(tcp_record, pid)..][..4]);
            prop_assert_eq!(&event.comm, &bytes[offset_of!(tcp_record, comm)..RECORD]);
            prop_assert_eq!(unowned_inode.is_some(), bytes[ORIGIN] & !TCP_ORIGIN_HELD == 0);
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
            values in vec(any::<u8>(), RECORD + DETAIL),
            (family, origin, direction) in (prop_oneof![Just(2u16), Just(10)], 0u8..=4, 0u8..=2),
            flips in vec((any::<Index>(), any::<u8>()), 0..4),
            len in prop_oneof![2 => Just(RECORD + DETAIL), 1 => Just(RECORD), 1 => 0..3 * RECORD],
        ) {
            let mut bytes = values;
            bytes[FAMILY..][..2].copy_from_slice(&family.to_ne_bytes());
            bytes[ORIGIN] = origin;
            bytes[DIRECTION] = direction;
            prop_assert!(decode(&bytes).is_some());
            for (at, to) in flips {
                *at.get_mut(&mut bytes) = to;
            }
            bytes.resize(len, 0xa5);
            check(&bytes)?;
        }
    }

    /// The detailed record of an IPv4 connection that was opened by this end, has sent 5,000 bytes, 100 of them twice,
    /// and has received 70,000 and the peer's FIN; its own FIN is acknowledged.
    struct Sample {
        birth_ns: u64,
        established_ns: u64,
        old_state: u8,
        new_state: u8,
        direction: u8,
        flags: u8,
        err: i32,
        bytes_acked: u64,
        bytes_sent: [u64; 2],
        sequence: [u32; 3],
    }

    impl Default for Sample {
        fn default() -> Self {
            Self {
                birth_ns: 11,
                established_ns: 33,
                old_state: state::LAST_ACK,
                new_state: state::CLOSE,
                direction: 1,
                flags: TCP_FLAG_FIN_RECEIVED,
                err: 0,
                bytes_acked: 5_002,
                // And again.
                bytes_sent: [5_100, 100],
                // snd_una, snd_nxt, write_seq: wrapped meanwhile.
                sequence: [4_000, 4_000, 4_000],
            }
        }
    }

    impl Sample {
        fn decoded(&self) -> Event {
            let Self { birth_ns, bytes_acked, old_state, .. } = *self;
            let [bytes_sent, bytes_retrans] = self.bytes_sent;
            let [snd_una, snd_nxt, write_seq] = self.sequence;
            let record = tcp_detailed_record {
                plain: tcp_record { birth_ns, bytes_acked, old_state, ..plain() },
                established_ns: self.established_ns,
                cookie: 4711,
                cgroup: 815,
                netns: 4_026_531_840,
                err: self.err,
                new_state: self.new_state,
                direction: self.direction,
                flags: self.flags,
                ending: 0,
                lingertime: 0,
                bytes_sent,
                bytes_retrans,
                segs_out: 9,
                segs_in: 8,
                total_retrans: 1,
                srtt_us: 800,
                min_rtt_us: 50,
                snd_una,
                snd_nxt,
                write_seq,
                sock_flags: 0,
                user_timeout: 0,
                copied_seq: 0,
                rcv_nxt: 0,
            };
            decode(record.as_bytes()).unwrap().event
        }
    }

    #[test]
    fn who_has_let_go_is_told_by_the_size() {
        let comm = *b"curl\0\0\0\0\0\0\0\0\0\0\0\0";
        let record = LetGo { close_ns: 111, comm, pid: 1234, uid: 1000, by_process: 1, reserved: [0; 7] };
        assert_eq!(LetGo::decode(record.as_bytes()), Some(record.clone()));
        assert_eq!(decode(record.as_bytes()), None);
        assert_eq!(LetGo::decode(&sample()), None);
    }

    #[test]
    fn every_detail_lands_where_it_belongs() {
        let event = Sample::default().decoded();
        assert_eq!((event.kind, event.old_state, event.new_state), (Kind::Close, state::LAST_ACK, state::CLOSE));
        assert_eq!((event.cookie, event.cgroup, event.netns), (4711, 815, 4_026_531_840));
        assert_eq!((event.age_ns, event.establish_ns, event.begin), (100, 22, Begin::Seen));
        assert_eq!((event.failure, event.error, event.direction), (Failure::None, 0, Direction::Connected));
        assert_eq!(event.ending, Ending::Orderly);
        assert_eq!((event.payload_received, event.payload_sent, event.payload_acked), (70_000, 5_000, 5_000));
        assert_eq!((event.bytes_received, event.bytes_acked, event.bytes_sent), (70_001, 5_002, Some(5_100)));
        assert_eq!((event.bytes_retransmitted, event.segs_retransmitted), (100, 1));
        assert_eq!((event.segs_out, event.segs_in, event.srtt_us, event.min_rtt_us), (9, 8, 100, 50));
    }

    #[test]
    fn payload_is_without_syn_and_fin_whatever_was_acknowledged() {
        let acked = |sample: Sample| sample.decoded().payload_acked;
        let by = |direction, bytes_acked, old_state, sequence| {
            acked(Sample { old_state, direction, bytes_acked, sequence, ..Sample::default() })
        };
        // A FIN that is still in flight, or has not been sent yet.
        assert_eq!(by(1, 5_001, state::FIN_WAIT1, [3_999, 4_000, 4_000]), 5_000);
        assert_eq!(by(1, 4_001, state::FIN_WAIT1, [2_999, 3_999, 4_000]), 4_000);
        // No FIN at all: a reset, with 1,000 bytes in flight.
        assert_eq!(by(1, 4_001, state::ESTABLISHED, [3_000, 4_000, 4_000]), 4_000);
        // An accepted connection has no SYN to be counted.
        assert_eq!(by(2, 5_001, state::LAST_ACK, [4_000; 3]), 5_000);
        // Of an older one nobody knows; what was acknowledged tells.
        assert_eq!(by(0, 5_001, state::LAST_ACK, [4_000; 3]), 5_000);
        assert_eq!(by(0, 5_002, state::LAST_ACK, [4_000; 3]), 5_000);
        assert_eq!(by(0, 4_001, state::ESTABLISHED, [3_000, 4_000, 4_000]), 4_000);
        assert_eq!(by(0, 4_000, state::ESTABLISHED, [3_000, 4_000, 4_000]), 4_000);
        // A failed attempt has had no SYN acknowledged.
        assert_eq!(by(1, 0, state::SYN_SENT, [0, 1, 1]), 0);
    }

    #[test]
    fn payload_sent_is_told_by_what_was_acknowledged_where_the_kernel_does_not_count_it() {
        let sent = |bytes_acked, old_state, sequence| {
            Sample { bytes_acked, bytes_sent: [0; 2], old_state, sequence, ..Sample::default() }.decoded().payload_sent
        };
        assert_eq!(sent(5_002, state::LAST_ACK, [4_000; 3]), 5_000);
        // A FIN in flight, alone and behind payload; payload alone; nothing but the SYN.
        assert_eq!(sent(5_001, state::FIN_WAIT1, [3_999, 4_000, 4_000]), 5_000);
        assert_eq!(sent(4_001, state::FIN_WAIT1, [2_999, 4_000, 4_000]), 5_000);
        assert_eq!(sent(4_001, state::ESTABLISHED, [3_000, 4_000, 4_000]), 5_000);
        assert_eq!(sent(1, state::ESTABLISHED, [4_000; 3]), 0);
        assert_eq!(sent(0, state::SYN_SENT, [0, 1, 1]), 0);
    }

    #[test]
    fn sums_of_counters_saturate() {
        // Sent is what was acknowledged and what is in flight; of an older connection, whether that is more than was sent
        // tells of the SYN.
        for direction in [0, 1, 2] {
            let (bytes_acked, sequence, old_state) = (u64::MAX, [3_000, 4_000, 4_000], state::ESTABLISHED);
            let sample =
                Sample { bytes_acked, bytes_sent: [0; 2], sequence, old_state, direction, ..Sample::default() };
            assert_eq!(sample.decoded().payload_sent, u64::MAX, "{direction}");
        }
    }

    #[test]
    fn a_failure_of_the_network_is_told_from_giving_up() {
        let failure = |old_state, err, flags, established_ns| {
            let event = Sample { established_ns, old_state, flags, err, ..Sample::default() }.decoded();
            (event.failure, event.error)
        };
        assert_eq!(failure(state::SYN_SENT, libc::ECONNREFUSED, 0, 0), (Failure::Network, libc::ECONNREFUSED));
        assert_eq!(failure(state::SYN_SENT, 0, TCP_FLAG_BEING_CLOSED, 0), (Failure::GivenUp, 0));
        assert_eq!(failure(state::SYN_SENT, 0, 0, 0), (Failure::GivenUp, 0), "shutdown, or connect to AF_UNSPEC");
        for flags in [TCP_FLAG_BEING_CLOSED, TCP_FLAG_ERROR_SOFT, TCP_FLAG_BEING_CLOSED | TCP_FLAG_ERROR_SOFT] {
            let expected = (Failure::GivenUp, libc::EHOSTUNREACH);
            assert_eq!(failure(state::SYN_SENT, libc::EHOSTUNREACH, flags, 0), expected, "{flags}");
        }
        assert_eq!(failure(state::SYN_SENT, 0, TCP_FLAG_ERROR_UNKNOWN, 0), (Failure::Network, 0));
        assert_eq!(
            failure(state::SYN_SENT, 0, TCP_FLAG_ERROR_UNKNOWN | TCP_FLAG_BEING_CLOSED, 0),
            (Failure::GivenUp, 0)
        );
        assert_eq!(failure(state::SYN_SENT, 0, TCP_FLAG_WITHIN_CONNECT, 0), (Failure::Network, 0));
        assert_eq!(failure(state::SYN_RECV, libc::ECONNRESET, 0, 0), (Failure::Network, libc::ECONNRESET));
        assert_eq!(failure(state::ESTABLISHED, libc::ECONNRESET, 0, 33), (Failure::None, libc::ECONNRESET));
        // The probe has not seen it begin.
        assert_eq!(failure(state::ESTABLISHED, 0, TCP_FLAG_BEING_CLOSED, 0), (Failure::None, 0));
    }

    #[test]
    fn an_attempt_without_a_change_of_state_has_failed_before_a_syn() {
        let (old_state, new_state) = (state::CLOSE, state::CLOSE);
        let sample = Sample { old_state, new_state, err: libc::ENETUNREACH, established_ns: 0, ..Sample::default() };
        let event = Sample { birth_ns: 0, ..sample }.decoded();
        assert_eq!((event.kind, event.failure, event.error), (Kind::Unsent, Failure::Network, libc::ENETUNREACH));
        assert_eq!((event.begin, event.age_ns, event.ending), (Begin::Seen, 0, Ending::Unknown));
        assert!(event.known().contains(Known::ERROR));
        assert!(!event.known().contains(Known::COUNTERS) && !event.known().contains(Known::TIMES));
    }

    #[test]
    fn a_syn_that_is_sent_again_is_a_retry_and_no_failure_yet() {
        let (old_state, new_state, sequence) = (state::SYN_SENT, state::SYN_SENT, [0, 1, 1]);
        let sample = Sample { old_state, new_state, sequence, bytes_acked: 0, bytes_sent: [0; 2], ..Sample::default() };
        let sample = Sample { err: libc::EHOSTUNREACH, flags: TCP_FLAG_ERROR_SOFT, established_ns: 0, ..sample };
        let event = sample.decoded();
        assert_eq!((event.kind, event.failure, event.error), (Kind::Retry, Failure::None, libc::EHOSTUNREACH));
        assert_eq!((event.segs_retransmitted, event.segs_out, event.age_ns), (1, 9, 111 - 11));
        assert_eq!((event.payload_sent, event.payload_acked, event.establish_ns), (0, 0, 0));
        assert!(event.known().contains(Known::ERROR | Known::COUNTERS | Known::TIMES));
    }

    #[test]
    fn only_the_end_of_a_connection_is_a_close() {
        let kind = |old_state, new_state, direction| {
            let event = Sample { old_state, new_state, direction, ..Sample::default() }.decoded();
            (event.kind, event.payload_sent)
        };
        assert_eq!(kind(state::SYN_SENT, state::ESTABLISHED, 1), (Kind::State, 0));
        assert_eq!(kind(state::LISTEN, state::CLOSE, 0), (Kind::State, 0));
        // By Fast Open, the process that is told has accepted it.
        assert_eq!(kind(state::SYN_RECV, state::CLOSE, 2), (Kind::Close, 5_000));
        assert_eq!(kind(state::SYN_RECV, state::CLOSE, 1), (Kind::Close, 5_000));
        assert_eq!(kind(state::FIN_WAIT2, state::CLOSE, 0), (Kind::Close, 5_000));
    }

    #[test]
    fn a_handshake_that_no_process_has_in_its_hands_is_no_connection() {
        for (origin, inode, kind) in [(0, 0u64, Kind::State), (0, 4711, Kind::Close), (2, 0, Kind::Close)] {
            let plain = tcp_record { old_state: state::SYN_RECV, origin, inode, ..plain() };
            let (new_state, direction) = (state::CLOSE, TCP_DIRECTION_ACCEPTED);
            let record = tcp_detailed_record { plain, new_state, direction, ..FromZeros::new_zeroed() };
            let event = decode(record.as_bytes()).unwrap().event;
            assert_eq!((event.kind, event.failure), (kind, Failure::None));
        }
    }

    #[test]
    fn the_age_of_an_older_connection_is_not_known() {
        let event = Sample { birth_ns: 0, ..Sample::default() }.decoded();
        assert_eq!((event.begin, event.age_ns, event.establish_ns), (Begin::Older, 0, 0));
    }
}
