//! The cost of an event on its way through the library, part by part: `cargo bench --bench micro`. `make bench`
//! measures the total cost for a host.
#![allow(missing_docs)] // Of items from criterion's macros.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tcpEvent::internals::DEFAULT_SLOTS;
use tcpEvent::internals::Queue;
use tcpEvent::internals::classic::abi::tcp_event_t;
use tcpEvent::internals::classic::event::ClassicEvent;
use tcpEvent::internals::diag::{Reply, for_each_reply, parse_socket};
use tcpEvent::internals::record::decode;
use tcpEvent::{Event, Kind, state};

/// `struct tcp_record` of `bpf/tcp_event.h`, for an IPv4 connection that has ended.
fn plain_record() -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [222_000u64, 111_000, 70_001, 5_002, 0] {
        bytes.extend(word.to_ne_bytes());
    }
    for word in [4u32, 3, 1234, 1000] {
        bytes.extend(word.to_ne_bytes());
    }
    for half in [2u16, 40_000, 443] {
        bytes.extend(half.to_ne_bytes());
    }
    // The initiator, in LAST_ACK.
    bytes.extend([1, state::LAST_ACK]);
    bytes.extend([192, 168, 100, 101, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend([203, 0, 113, 250, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend(*b"curl\0\0\0\0\0\0\0\0\0\0\0\0");
    bytes
}

/// `struct tcp_detailed_record` for the same connection.
fn detailed_record() -> Vec<u8> {
    let mut bytes = plain_record();
    for long in [112_000u64, 4711, 815] {
        bytes.extend(long.to_ne_bytes());
    }
    bytes.extend(4_026_531_840u32.to_ne_bytes());
    bytes.extend(0i32.to_ne_bytes());
    // Connected; the peer's FIN was received.
    bytes.extend([state::CLOSE, 1, 1, 0, 0, 0, 0, 0]);
    for long in [5_100u64, 100] {
        bytes.extend(long.to_ne_bytes());
    }
    for word in [9u32, 8, 1, 800, 50, 4_000, 4_000, 4_000] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes
}

fn decoding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    for (name, record) in [("plain", plain_record()), ("detailed", detailed_record())] {
        assert!(decode(&record).is_some(), "the record is as long as bpf/tcp_event.h says");
        group.throughput(Throughput::Elements(1));
        group.bench_function(name, |bencher| bencher.iter(|| decode(black_box(&record))));
    }
    group.finish();
}

fn close() -> Event {
    decode(&plain_record()).expect("a whole record").event
}

fn queueing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("queue");
    group.throughput(Throughput::Elements(1));
    let event = ClassicEvent::from(&close());

    let queue = Queue::new(DEFAULT_SLOTS).expect("memory");
    group.bench_function("push and pop", |bencher| {
        bencher.iter(|| {
            queue.push_displacing(black_box(event.clone()));
            queue.pop()
        });
    });

    let full = Queue::new(DEFAULT_SLOTS).expect("memory");
    while full.push_if_room(event.clone()) {}
    group.bench_function("push into a full one", |bencher| {
        bencher.iter(|| full.push_displacing(black_box(event.clone())));
    });
    group.finish();
}

fn formatting(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("tcp_event_t");
    group.throughput(Throughput::Elements(1));
    let v4 = close();
    let address = "2001:db8:12:3400:a00:27ff:fe4e:66a1".parse::<std::net::Ipv6Addr>().expect("an address").octets();
    let mut v6 = v4.clone();
    (v6.family, v6.local_addr, v6.remote_addr) = (10, address, address);
    for (name, event) in [("IPv4", ClassicEvent::from(&v4)), ("IPv6", ClassicEvent::from(&v6))] {
        group.bench_function(name, |bencher| bencher.iter(|| tcp_event_t::from(black_box(&event))));
    }
    group.bench_function("from an event", |bencher| bencher.iter(|| ClassicEvent::from(black_box(&v4))));
    group.finish();
}

/// The payload of one socket in a sock_diag listing, with a `tcp_info` of Linux 6.
fn listed_socket(number: u32) -> Vec<u8> {
    const TCP_INFO_LEN: u16 = 248;
    let mut bytes = vec![2, state::ESTABLISHED, 0, 0];
    bytes.extend(8080u16.to_be_bytes());
    bytes.extend(443u16.to_be_bytes());
    bytes.extend([10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend([10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend([0; 4]);
    bytes.extend(u64::from(number).to_ne_bytes());
    for word in [0u32, 0, 0, 1000, 77 + number] {
        bytes.extend(word.to_ne_bytes());
    }
    // INET_DIAG_INFO, then INET_DIAG_CGROUP_ID.
    bytes.extend((4 + TCP_INFO_LEN).to_ne_bytes());
    bytes.extend(2u16.to_ne_bytes());
    bytes.extend([1; TCP_INFO_LEN as usize]);
    bytes.extend(12u16.to_ne_bytes());
    bytes.extend(21u16.to_ne_bytes());
    bytes.extend(815u64.to_ne_bytes());
    bytes
}

/// A datagram of a dump, as long as the kernel's.
fn datagram(sequence: u32) -> Vec<u8> {
    const MOST: usize = 32 * 1024;
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const NLM_F_MULTI: u16 = 2;
    let mut bytes = Vec::new();
    for number in 0.. {
        let payload = listed_socket(number);
        if bytes.len() + 16 + payload.len() > MOST {
            break;
        }
        bytes.extend(u32::try_from(16 + payload.len()).expect("a short message").to_ne_bytes());
        bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        bytes.extend(NLM_F_MULTI.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

fn listing(criterion: &mut Criterion) {
    const SEQUENCE: u32 = 9;
    let mut group = criterion.benchmark_group("sock_diag");

    let payload = listed_socket(0);
    assert!(parse_socket(&payload).is_some(), "the payload is a whole one");
    group.throughput(Throughput::Elements(1));
    group.bench_function("a socket", |bencher| bencher.iter(|| parse_socket(black_box(&payload))));

    let datagram = datagram(SEQUENCE);
    let mut sockets = 0;
    for_each_reply(&datagram, SEQUENCE, |reply| sockets += u64::from(matches!(reply, Reply::Socket(_))));
    assert!(sockets > 50, "a datagram of 32 KiB holds {sockets} sockets");
    group.throughput(Throughput::Elements(sockets));
    group.bench_function("a datagram, into a queue", |bencher| {
        bencher.iter_batched_ref(
            || Queue::new(DEFAULT_SLOTS).expect("memory"),
            |queue| {
                for_each_reply(black_box(&datagram), SEQUENCE, |reply| {
                    let Reply::Socket(payload) = reply else { return };
                    if let Some(event) = parse_socket(payload) {
                        assert_eq!(event.kind, Kind::Snapshot);
                        queue.push_if_room(ClassicEvent::from(&event));
                    }
                });
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

criterion_group!(benches, decoding, queueing, formatting, listing);
criterion_main!(benches);
