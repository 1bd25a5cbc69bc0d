//! The structures that existing consumers were compiled against, byte for byte.
//!
//! `include/common.h` is generated from this file. Nothing here may ever change its size or an offset: the
//! assertions below, `tests/abi.rs` and the C and C++ compilers all hold it in place.
#![allow(non_camel_case_types)]

use std::ffi::c_char;
use std::mem::{offset_of, size_of};

/// Bytes of a `task`, `SADDR` or `DADDR` field.
pub(crate) const TEXT_LEN: usize = 128;

/// One TCP event, as `DequeuePerfEvent` hands it out: 430 bytes without padding, all numbers in host byte order.
///
/// It describes one endpoint: a connection between two processes of one host gives events for each end.
#[repr(C, packed)]
#[derive(Clone, Copy)]
pub struct tcp_event_t {
    /// Wall-clock time of the event, in nanoseconds since 1970-01-01 UTC.
    pub EventTime: u64,
    /// Process (thread group) that owns the endpoint.
    pub pid: u32,
    /// User ID of that process (of the socket, in a snapshot).
    pub UserId: u32,
    /// Payload bytes received; the peer's FIN counts as one more, once it has come (tcp_sock.bytes_received).
    pub rx_b: u64,
    /// Payload bytes sent. A close event gives those acknowledged, and counts the initiator's SYN and either side's FIN
    /// as one more each (tcp_sock.bytes_acked); a snapshot gives those sent, retransmissions included.
    pub tx_b: u64,
    /// Segments sent: data segments in a close event, all segments in a snapshot.
    pub tcpi_segs_out: u32,
    /// Segments received: data segments in a close event, all segments in a snapshot.
    pub tcpi_segs_in: u32,
    /// Address family: 2 (AF_INET) or 10 (AF_INET6).
    pub family: u16,
    /// Local port.
    pub SPT: u16,
    /// Remote port; 0 for a listening socket.
    pub DPT: u16,
    /// Command of the process, NUL-terminated, at most 16 bytes.
    pub task: [c_char; 128],
    /// Local address as inet_ntop(3) prints it, NUL-terminated.
    pub SADDR: [c_char; 128],
    /// Remote address, in the same form.
    pub DADDR: [c_char; 128],
}

/// The record of the reference library's own probe: 222 bytes without padding. No function of this library takes or
/// returns it; it is here for programs that name it.
#[repr(C, packed)]
#[derive(Clone, Copy)]
pub struct event_t {
    /// Time of the event, in nanoseconds.
    pub EventTime: u64,
    /// The same in microseconds.
    pub ts_us: u64,
    /// Process that owns the endpoint.
    pub pid: u32,
    /// Its user ID.
    pub UserId: u32,
    /// Local address in network byte order; an IPv4 address fills the first 4 bytes.
    pub saddr: [u8; 16],
    /// Remote address, in the same form.
    pub daddr: [u8; 16],
    /// Bytes received.
    pub rx_b: u64,
    /// Bytes sent.
    pub tx_b: u64,
    /// Segments sent.
    pub tcpi_segs_out: u32,
    /// Segments received.
    pub tcpi_segs_in: u32,
    /// Age of the connection, in microseconds.
    pub span_us: u64,
    /// Address family.
    pub family: u16,
    /// Local port.
    pub SPT: u16,
    /// Remote port.
    pub DPT: u16,
    /// Command of the process.
    pub task: [c_char; 128],
}

/// The kernel's struct tcp_info (include/uapi/linux/tcp.h) up to and including tcpi_snd_wnd: 232 bytes. Here for
/// programs that name it: system headers may have a shorter one.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(missing_docs)] // The names are the kernel's, and documented there.
pub struct anu_tcp_info {
    pub tcpi_state: u8,
    pub tcpi_ca_state: u8,
    pub tcpi_retransmits: u8,
    pub tcpi_probes: u8,
    pub tcpi_backoff: u8,
    pub tcpi_options: u8,
    pub tcpi_snd_wscale_rcv_wscale: u8,
    pub tcpi_delivery_rate_app_limited_fastopen_client_fail: u8,
    pub tcpi_rto: u32,
    pub tcpi_ato: u32,
    pub tcpi_snd_mss: u32,
    pub tcpi_rcv_mss: u32,
    pub tcpi_unacked: u32,
    pub tcpi_sacked: u32,
    pub tcpi_lost: u32,
    pub tcpi_retrans: u32,
    pub tcpi_fackets: u32,
    pub tcpi_last_data_sent: u32,
    pub tcpi_last_ack_sent: u32,
    pub tcpi_last_data_recv: u32,
    pub tcpi_last_ack_recv: u32,
    pub tcpi_pmtu: u32,
    pub tcpi_rcv_ssthresh: u32,
    pub tcpi_rtt: u32,
    pub tcpi_rttvar: u32,
    pub tcpi_snd_ssthresh: u32,
    pub tcpi_snd_cwnd: u32,
    pub tcpi_advmss: u32,
    pub tcpi_reordering: u32,
    pub tcpi_rcv_rtt: u32,
    pub tcpi_rcv_space: u32,
    pub tcpi_total_retrans: u32,
    pub tcpi_pacing_rate: u64,
    pub tcpi_max_pacing_rate: u64,
    pub tcpi_bytes_acked: u64,
    pub tcpi_bytes_received: u64,
    pub tcpi_segs_out: u32,
    pub tcpi_segs_in: u32,
    pub tcpi_notsent_bytes: u32,
    pub tcpi_min_rtt: u32,
    pub tcpi_data_segs_in: u32,
    pub tcpi_data_segs_out: u32,
    pub tcpi_delivery_rate: u64,
    pub tcpi_busy_time: u64,
    pub tcpi_rwnd_limited: u64,
    pub tcpi_sndbuf_limited: u64,
    pub tcpi_delivered: u32,
    pub tcpi_delivered_ce: u32,
    pub tcpi_bytes_sent: u64,
    pub tcpi_bytes_retrans: u64,
    pub tcpi_dsack_dups: u32,
    pub tcpi_reord_seen: u32,
    pub tcpi_rcv_ooopack: u32,
    pub tcpi_snd_wnd: u32,
}

const _: () = {
    assert!(size_of::<tcp_event_t>() == 430);
    assert!(offset_of!(tcp_event_t, EventTime) == 0);
    assert!(offset_of!(tcp_event_t, pid) == 8);
    assert!(offset_of!(tcp_event_t, UserId) == 12);
    assert!(offset_of!(tcp_event_t, rx_b) == 16);
    assert!(offset_of!(tcp_event_t, tx_b) == 24);
    assert!(offset_of!(tcp_event_t, tcpi_segs_out) == 32);
    assert!(offset_of!(tcp_event_t, tcpi_segs_in) == 36);
    assert!(offset_of!(tcp_event_t, family) == 40);
    assert!(offset_of!(tcp_event_t, SPT) == 42);
    assert!(offset_of!(tcp_event_t, DPT) == 44);
    assert!(offset_of!(tcp_event_t, task) == 46);
    assert!(offset_of!(tcp_event_t, SADDR) == 174);
    assert!(offset_of!(tcp_event_t, DADDR) == 302);

    assert!(size_of::<event_t>() == 222);
    assert!(offset_of!(event_t, saddr) == 24);
    assert!(offset_of!(event_t, rx_b) == 56);
    assert!(offset_of!(event_t, span_us) == 80);
    assert!(offset_of!(event_t, task) == 94);

    assert!(size_of::<anu_tcp_info>() == 232);
    assert!(offset_of!(anu_tcp_info, tcpi_rto) == 8);
    assert!(offset_of!(anu_tcp_info, tcpi_pacing_rate) == 104);
    assert!(offset_of!(anu_tcp_info, tcpi_bytes_acked) == 120);
    assert!(offset_of!(anu_tcp_info, tcpi_bytes_received) == 128);
    assert!(offset_of!(anu_tcp_info, tcpi_segs_out) == 136);
    assert!(offset_of!(anu_tcp_info, tcpi_segs_in) == 140);
    assert!(offset_of!(anu_tcp_info, tcpi_bytes_sent) == 200);
    assert!(offset_of!(anu_tcp_info, tcpi_bytes_retrans) == 208);
    assert!(offset_of!(anu_tcp_info, tcpi_snd_wnd) == 228);
};
