//! How a connection has ended, concluded from what the record of its close has. Pure.

use super::record::Sequence;
use crate::event::{Direction, Ending, state};
use crate::sys::shared::{
    TCP_ENDING_BY_CONNECT, TCP_ENDING_BY_PROCESS, TCP_ENDING_BY_REPAIR, TCP_ENDING_NEVER_HELD,
    TCP_ENDING_WINDOW_CLOSED, TCP_FLAG_BEING_CLOSED, TCP_FLAG_ENDING_TOLD, TCP_FLAG_FIN_RECEIVED, tcp_detailed_record,
};

/// `enum sock_flags` of include/net/sock.h.
const SOCK_LINGER: u32 = 1 << 4;

impl Ending {
    /// Of a connection that was established. `err`: what has ended it; `None` where that is not known.
    pub fn of(detail: &tcp_detailed_record, direction: Direction, err: Option<i32>) -> Self {
        let Some(err) = err else {
            return Self::Unknown;
        };
        let has = |flag| detail.flags & flag != 0;
        let old_state = detail.plain.old_state;
        let waits_for_fin = matches!(old_state, state::FIN_WAIT1 | state::FIN_WAIT2);
        match err {
            // Data that comes once nobody can read it is answered by a reset, and the kernel ends the connection as if it had got
            // one (tcp_rcv_state_process: TCPABORTONDATA).
            libc::ECONNRESET if waits_for_fin && (has(TCP_FLAG_BEING_CLOSED) || !has(TCP_FLAG_ENDING_TOLD)) => {
                Self::Reset
            }
            libc::ECONNRESET | libc::EPIPE => Self::ResetByPeer,
            // Both have a FIN, and all is acknowledged; a process may happen to handle the segment that says so.
            0 if matches!(old_state, state::LAST_ACK | state::CLOSING) && detail.snd_una == detail.write_seq => {
                Self::Orderly
            }
            _ if !has(TCP_FLAG_ENDING_TOLD) => Self::Unknown,
            0 if old_state == state::FIN_WAIT2 && has(TCP_FLAG_FIN_RECEIVED) => Self::Orderly,
            0 if is(detail, TCP_ENDING_BY_PROCESS) => Self::by_process(detail),
            0 => match old_state {
                state::FIN_WAIT2 if detail.plain.inode == 0 => Self::HalfClosed,
                state::ESTABLISHED | state::CLOSE_WAIT
                    if direction == Direction::Accepted && is(detail, TCP_ENDING_NEVER_HELD) =>
                {
                    Self::NotAccepted
                }
                // For want of memory, or of a network namespace (tcp_check_oom, tcp_out_of_resources, __tcp_close).
                _ => Self::Unknown,
            },
            libc::ECONNABORTED => Self::Aborted,
            _ => Self::by_time(detail),
        }
    }

    /// As tcp_close() and tcp_disconnect() do: data that was not read comes before SO_LINGER.
    fn by_process(detail: &tcp_detailed_record) -> Self {
        let has = |flag| detail.flags & flag != 0;
        let fin = u32::from(has(TCP_FLAG_FIN_RECEIVED));
        // Where the FIN was read as well, it is one less than nothing.
        let unread = detail.rcv_nxt.wrapping_sub(detail.copied_seq).wrapping_sub(fin);
        // Both directions may have been shut down before, as if it were being closed.
        let closes = has(TCP_FLAG_BEING_CLOSED) && !is(detail, TCP_ENDING_BY_CONNECT);
        if is(detail, TCP_ENDING_BY_REPAIR) {
            Self::Disconnected
        } else if closes && (1..1 << 31).contains(&unread) {
            Self::Unread
        } else if matches!(detail.plain.old_state, state::LAST_ACK | state::CLOSING)
            && detail.snd_nxt == detail.write_seq
        {
            // Both FINs were sent: there is no reset, and the peer has not acknowledged this end's.
            Self::Unknown
        } else if closes && detail.sock_flags & SOCK_LINGER != 0 && detail.lingertime == 0 {
            Self::Linger
        } else {
            Self::Disconnected
        }
    }

    /// With ETIMEDOUT, or what an ICMP message has said meanwhile.
    fn by_time(detail: &tcp_detailed_record) -> Self {
        let sequence = Sequence { acked: detail.snd_una, sent: detail.snd_nxt, written: detail.write_seq };
        if detail.plain.old_state == state::SYN_RECV {
            // Its SYN-ACK, which has a limit of its own (Fast Open).
            Self::Unacknowledged
        } else if detail.user_timeout != 0 {
            Self::UserTimeout
        } else if sequence.acked == sequence.written {
            Self::Keepalive
        } else if sequence.acked == sequence.sent && is(detail, TCP_ENDING_WINDOW_CLOSED) {
            Self::ClosedWindow
        } else {
            Self::Unacknowledged
        }
    }
}

fn is(detail: &tcp_detailed_record, what: u8) -> bool {
    detail.ending & what != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::shared::tcp_record;
    use zerocopy::FromZeros;

    fn record(old_state: u8, change: impl FnOnce(&mut tcp_detailed_record)) -> tcp_detailed_record {
        let mut record = tcp_detailed_record {
            plain: tcp_record { old_state, inode: 1, ..tcp_record::new_zeroed() },
            flags: TCP_FLAG_ENDING_TOLD,
            ..tcp_detailed_record::new_zeroed()
        };
        change(&mut record);
        record
    }

    fn of(old_state: u8, err: i32, change: impl FnOnce(&mut tcp_detailed_record)) -> Ending {
        Ending::of(&record(old_state, change), Direction::Accepted, Some(err))
    }

    #[test]
    fn ends_without_an_error_are_in_order_or_the_programs() {
        let fin = |record: &mut tcp_detailed_record| record.flags |= TCP_FLAG_FIN_RECEIVED;
        assert_eq!(of(state::LAST_ACK, 0, fin), Ending::Orderly);
        assert_eq!(of(state::CLOSING, 0, fin), Ending::Orderly);
        assert_eq!(of(state::FIN_WAIT2, 0, fin), Ending::Orderly);
        // By a process that waits for its time to linger, or that reads, and so handles what has come meanwhile.
        for old_state in [state::LAST_ACK, state::CLOSING, state::FIN_WAIT2] {
            let by_process = of(old_state, 0, |record| {
                fin(record);
                (record.ending, record.sock_flags, record.lingertime) = (TCP_ENDING_BY_PROCESS, SOCK_LINGER, 0);
            });
            assert_eq!(by_process, Ending::Orderly);
        }
        let orphan = |record: &mut tcp_detailed_record| record.plain.inode = 0;
        assert_eq!(of(state::FIN_WAIT2, 0, orphan), Ending::HalfClosed);
        assert_eq!(of(state::FIN_WAIT2, 0, |_| {}), Ending::Unknown);
        assert_eq!(of(state::FIN_WAIT1, 0, orphan), Ending::Unknown);
        // Its FIN is not acknowledged.
        assert_eq!(of(state::LAST_ACK, 0, |record| record.write_seq = 1), Ending::Unknown);
        // A socket of the kernel has no inode either.
        assert_eq!(of(state::CLOSE_WAIT, 0, orphan), Ending::Unknown);
        let never_held = record(state::CLOSE_WAIT, |record| record.ending = TCP_ENDING_NEVER_HELD);
        assert_eq!(Ending::of(&never_held, Direction::Accepted, Some(0)), Ending::NotAccepted);
        assert_eq!(Ending::of(&never_held, Direction::Connected, Some(0)), Ending::Unknown);
    }

    /// What a process does to a connection that it has, in order or not.
    fn by_process(old_state: u8, flags: u8, change: impl FnOnce(&mut tcp_detailed_record)) -> Ending {
        of(old_state, 0, |record| {
            record.flags |= flags;
            record.ending = TCP_ENDING_BY_PROCESS;
            (record.copied_seq, record.rcv_nxt) = (5, 5);
            change(record);
        })
    }

    #[test]
    fn what_was_not_read_comes_before_the_option() {
        let closes = |flags: u8, copied_seq: u32, sock_flags: u32, lingertime: u32| {
            by_process(state::ESTABLISHED, TCP_FLAG_BEING_CLOSED | flags, |record| {
                (record.copied_seq, record.sock_flags, record.lingertime) = (copied_seq, sock_flags, lingertime);
            })
        };
        assert_eq!(closes(0, 5, SOCK_LINGER, 0), Ending::Linger);
        assert_eq!(closes(0, 5, SOCK_LINGER, 100), Ending::Disconnected);
        assert_eq!(closes(0, 5, 0, 0), Ending::Disconnected);
        assert_eq!(closes(0, 4, SOCK_LINGER, 0), Ending::Unread);
        assert_eq!(closes(0, u32::MAX, 0, 0), Ending::Unread);
        assert_eq!(closes(TCP_FLAG_FIN_RECEIVED, 4, SOCK_LINGER, 0), Ending::Linger);
        assert_eq!(closes(TCP_FLAG_FIN_RECEIVED, 5, SOCK_LINGER, 0), Ending::Linger);
        assert_eq!(closes(TCP_FLAG_FIN_RECEIVED, 3, SOCK_LINGER, 0), Ending::Unread);
    }

    #[test]
    fn who_dissolves_a_connection_need_not_read_it() {
        let unread = |record: &mut tcp_detailed_record| (record.copied_seq, record.sock_flags) = (4, SOCK_LINGER);
        assert_eq!(by_process(state::ESTABLISHED, 0, unread), Ending::Disconnected);
        let shut_down = |record: &mut tcp_detailed_record| {
            unread(record);
            record.ending |= TCP_ENDING_BY_CONNECT;
        };
        assert_eq!(by_process(state::FIN_WAIT1, TCP_FLAG_BEING_CLOSED, shut_down), Ending::Disconnected);
        let taken_away = |record: &mut tcp_detailed_record| {
            unread(record);
            record.ending |= TCP_ENDING_BY_REPAIR;
        };
        assert_eq!(by_process(state::ESTABLISHED, TCP_FLAG_BEING_CLOSED, taken_away), Ending::Disconnected);
    }

    #[test]
    fn once_both_fins_were_sent_there_is_a_reset_for_what_was_not_read_alone() {
        let closes = |old_state, copied_seq, snd_nxt| {
            by_process(old_state, TCP_FLAG_BEING_CLOSED, |record| {
                (record.copied_seq, record.snd_nxt, record.write_seq) = (copied_seq, snd_nxt, 9);
                record.sock_flags = SOCK_LINGER;
            })
        };
        assert_eq!(closes(state::LAST_ACK, 5, 9), Ending::Unknown);
        assert_eq!(closes(state::CLOSING, 5, 9), Ending::Unknown);
        assert_eq!(closes(state::LAST_ACK, 5, 8), Ending::Linger);
        assert_eq!(closes(state::LAST_ACK, 4, 9), Ending::Unread);
        assert_eq!(closes(state::FIN_WAIT1, 5, 9), Ending::Linger);
    }

    #[test]
    fn a_reset_is_the_peers_unless_it_may_be_this_ends() {
        let closed = |record: &mut tcp_detailed_record| record.flags |= TCP_FLAG_BEING_CLOSED;
        assert_eq!(of(state::ESTABLISHED, libc::ECONNRESET, |_| {}), Ending::ResetByPeer);
        assert_eq!(of(state::CLOSE_WAIT, libc::EPIPE, |_| {}), Ending::ResetByPeer);
        assert_eq!(of(state::FIN_WAIT2, libc::ECONNRESET, |_| {}), Ending::ResetByPeer);
        assert_eq!(of(state::FIN_WAIT2, libc::ECONNRESET, closed), Ending::Reset);
        assert_eq!(of(state::LAST_ACK, libc::ECONNRESET, closed), Ending::ResetByPeer);
        assert_eq!(of(state::ESTABLISHED, libc::ECONNABORTED, |_| {}), Ending::Aborted);
    }

    #[test]
    fn what_the_kernel_has_waited_for_is_told() {
        let waiting_in = |old_state, user_timeout, ending, [snd_una, snd_nxt, write_seq]: [u32; 3]| {
            let times = [libc::ETIMEDOUT, libc::EHOSTUNREACH].map(|err| {
                of(old_state, err, |record| {
                    (record.user_timeout, record.ending) = (user_timeout, ending);
                    (record.snd_una, record.snd_nxt, record.write_seq) = (snd_una, snd_nxt, write_seq);
                })
            });
            assert_eq!(times[0], times[1]);
            times[0]
        };
        let waiting = |user_timeout, ending, sequence| waiting_in(state::ESTABLISHED, user_timeout, ending, sequence);
        assert_eq!(waiting(0, 0, [7, 7, 7]), Ending::Keepalive);
        assert_eq!(waiting(0, TCP_ENDING_WINDOW_CLOSED, [7, 7, 9]), Ending::ClosedWindow);
        assert_eq!(waiting(0, TCP_ENDING_WINDOW_CLOSED, [7, 8, 9]), Ending::Unacknowledged);
        // This host could not send it.
        assert_eq!(waiting(0, 0, [7, 7, 9]), Ending::Unacknowledged);
        assert_eq!(waiting(500, 0, [7, 8, 9]), Ending::UserTimeout);
        assert_eq!(waiting_in(state::SYN_RECV, 500, 0, [7, 7, 7]), Ending::Unacknowledged);
    }

    #[test]
    fn what_is_not_told_is_not_guessed() {
        let not_told = |old_state, err| of(old_state, err, |record| record.flags = 0);
        assert_eq!(not_told(state::ESTABLISHED, 0), Ending::Unknown);
        assert_eq!(not_told(state::FIN_WAIT2, 0), Ending::Unknown);
        assert_eq!(not_told(state::FIN_WAIT2, libc::ECONNRESET), Ending::Reset);
        assert_eq!(not_told(state::ESTABLISHED, libc::ECONNRESET), Ending::ResetByPeer);
        assert_eq!(not_told(state::LAST_ACK, 0), Ending::Orderly);
        assert_eq!(not_told(state::ESTABLISHED, libc::ETIMEDOUT), Ending::Unknown);
        let told = record(state::LAST_ACK, |_| {});
        assert_eq!(Ending::of(&told, Direction::Accepted, None), Ending::Unknown);
    }
}
