//! How a connection has ended, concluded from what the record of its close has. Pure.

use super::record::Sequence;
use crate::event::{Direction, Ending, state};
use crate::sys::shared::{TCP_FLAG_BEING_CLOSED, TCP_FLAG_ENDING_TOLD, TCP_FLAG_FIN_RECEIVED, tcp_detailed_record};

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
            // Data that comes after the process has closed the socket is answered by a reset, and the kernel ends the connection as
            // if it had got one (tcp_rcv_state_process: TCPABORTONDATA).
            libc::ECONNRESET if waits_for_fin && (has(TCP_FLAG_BEING_CLOSED) || !has(TCP_FLAG_ENDING_TOLD)) => {
                Self::Reset
            }
            libc::ECONNRESET | libc::EPIPE => Self::ResetByPeer,
            // Else it is for want of memory (tcp_check_oom, tcp_out_of_resources).
            0 if matches!(old_state, state::LAST_ACK | state::CLOSING) && !is_by_process(detail) => {
                if detail.snd_una == detail.write_seq { Self::Orderly } else { Self::Unknown }
            }
            _ if !has(TCP_FLAG_ENDING_TOLD) => Self::Unknown,
            0 if is_by_process(detail) => Self::by_process(detail),
            0 => match old_state {
                state::FIN_WAIT2 if has(TCP_FLAG_FIN_RECEIVED) => Self::Orderly,
                state::FIN_WAIT2 => Self::HalfClosed,
                state::ESTABLISHED | state::CLOSE_WAIT
                    if direction == Direction::Accepted && detail.plain.inode == 0 =>
                {
                    Self::NotAccepted
                }
                _ => Self::Unknown,
            },
            libc::ECONNABORTED => Self::Aborted,
            _ => Self::by_time(detail),
        }
    }

    /// As tcp_close() does: data that was not read comes before SO_LINGER.
    fn by_process(detail: &tcp_detailed_record) -> Self {
        let fin = u32::from(detail.flags & TCP_FLAG_FIN_RECEIVED != 0);
        // Where the FIN was read as well, it is one less than nothing.
        let unread = detail.rcv_nxt.wrapping_sub(detail.copied_seq).wrapping_sub(fin);
        if (1..1 << 31).contains(&unread) {
            Self::Unread
        } else if detail.sock_flags & SOCK_LINGER != 0 && detail.lingertime == 0 {
            Self::Linger
        } else {
            Self::Disconnected
        }
    }

    /// With ETIMEDOUT, or what an ICMP message has said meanwhile.
    fn by_time(detail: &tcp_detailed_record) -> Self {
        let sequence = Sequence { acked: detail.snd_una, sent: detail.snd_nxt, written: detail.write_seq };
        if detail.user_timeout != 0 {
            Self::UserTimeout
        } else if sequence.acked == sequence.written {
            Self::Keepalive
        } else if sequence.acked == sequence.sent {
            Self::ClosedWindow
        } else {
            Self::Unacknowledged
        }
    }
}

/// By the socket that it has: close, shutdown, connect. One whose last process is gone is closed by its timers and its peer.
fn is_by_process(detail: &tcp_detailed_record) -> bool {
    detail.by_process != 0 && detail.plain.inode != 0
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
        assert_eq!(of(state::FIN_WAIT2, 0, |_| {}), Ending::HalfClosed);
        assert_eq!(of(state::FIN_WAIT1, 0, |_| {}), Ending::Unknown);
        // Its FIN is not acknowledged.
        assert_eq!(of(state::LAST_ACK, 0, |record| record.write_seq = 1), Ending::Unknown);
        // Under the lock of the process that closes, but after it has let go of the socket.
        let orphan = |record: &mut tcp_detailed_record| (record.by_process, record.plain.inode) = (1, 0);
        assert_eq!(of(state::FIN_WAIT2, 0, orphan), Ending::HalfClosed);
        assert_eq!(of(state::CLOSE_WAIT, 0, |record| record.plain.inode = 0), Ending::NotAccepted);
        let connected = record(state::ESTABLISHED, |record| record.plain.inode = 0);
        assert_eq!(Ending::of(&connected, Direction::Connected, Some(0)), Ending::Unknown);
    }

    #[test]
    fn what_was_not_read_comes_before_the_option() {
        let by_process = |flags: u8, copied_seq: u32, sock_flags: u32, lingertime: u32| {
            of(state::ESTABLISHED, 0, |record| {
                record.flags |= flags;
                record.by_process = 1;
                record.rcv_nxt = 5;
                (record.copied_seq, record.sock_flags, record.lingertime) = (copied_seq, sock_flags, lingertime);
            })
        };
        assert_eq!(by_process(0, 5, SOCK_LINGER, 0), Ending::Linger);
        assert_eq!(by_process(0, 5, SOCK_LINGER, 100), Ending::Disconnected);
        assert_eq!(by_process(0, 5, 0, 0), Ending::Disconnected);
        assert_eq!(by_process(0, 4, SOCK_LINGER, 0), Ending::Unread);
        assert_eq!(by_process(0, u32::MAX, 0, 0), Ending::Unread);
        assert_eq!(by_process(TCP_FLAG_FIN_RECEIVED, 4, SOCK_LINGER, 0), Ending::Linger);
        assert_eq!(by_process(TCP_FLAG_FIN_RECEIVED, 5, SOCK_LINGER, 0), Ending::Linger);
        assert_eq!(by_process(TCP_FLAG_FIN_RECEIVED, 3, SOCK_LINGER, 0), Ending::Unread);
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
        let waiting = |user_timeout, [snd_una, snd_nxt, write_seq]: [u32; 3]| {
            let times = [libc::ETIMEDOUT, libc::EHOSTUNREACH].map(|err| {
                of(state::ESTABLISHED, err, |record| {
                    record.user_timeout = user_timeout;
                    (record.snd_una, record.snd_nxt, record.write_seq) = (snd_una, snd_nxt, write_seq);
                })
            });
            assert_eq!(times[0], times[1]);
            times[0]
        };
        assert_eq!(waiting(0, [7, 7, 7]), Ending::Keepalive);
        assert_eq!(waiting(0, [7, 7, 9]), Ending::ClosedWindow);
        assert_eq!(waiting(0, [7, 8, 9]), Ending::Unacknowledged);
        assert_eq!(waiting(500, [7, 8, 9]), Ending::UserTimeout);
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
