//! Attaches by one rung of the ladder, found by trying.

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::path::Path;
use std::slice;

use libbpf_rs::OpenObject;

use super::attached::{Own, Probe};
use super::extras::Extras;
use super::features::{kernel_has_kprobes, kernel_has_ring_buffer};
use super::object::FreePlaces;
use super::owner_maps::OwnerMaps;
use super::refusal::{Refusal, Stage};
use super::remedy::refused_by_all;
use super::ring::Kernel;
use super::types::{KERNEL_BTF, KernelTypes, SET_STATE};
use super::{instructions, perf, ring, tracepoint};
use crate::config::{ProbeSettings, Rung};
use crate::error::Error;
use crate::sys::log::{self, Level};

/// Climbs the ladder until a rung holds.
pub fn attach<'obj>(settings: &ProbeSettings, places: &'obj mut Places) -> Result<Probe<'obj>, Error> {
    let mut refusals = Vec::new();
    instructions::take_over();
    let maps = Cell::new(OwnerMaps::begin(settings));
    // The plain tracepoint needs none.
    let needs_types = settings.rung != Some(Rung::Tracepoint);
    let types = if needs_types { KernelTypes::read(settings)? } else { KernelTypes::default() };
    let ladder = order(&types);
    let rungs = settings.rung.as_ref().map_or(ladder.as_slice(), slice::from_ref);
    if rungs.first() == Some(&Rung::TpBtf) && settings.rung.is_none() {
        log::line(Level::Info, "tp_btf is tried first: it takes half of the instructions of kprobe");
    } else if types.preemptible && settings.rung.is_none() {
        log::line(
            Level::Info,
            "kprobe is tried first: programs at a tracepoint can be preempted, and miss some changes",
        );
    }
    let kernel = Kernel { types, maps };
    let mut places = FreePlaces::new(&mut places.0);
    for &rung in rungs {
        match attach_rung(rung, settings, &kernel, &mut places) {
            Ok(mut probe) => {
                log::line(Level::Info, format_args!("attached by {}", rung.name()));
                probe.own = Own::of(&probe);
                return Ok(probe);
            }
            Err(refusal) => {
                log::line(Level::Info, format_args!("{} refused: {refusal}", rung.name()));
                refusals.push((rung, refusal));
            }
        }
    }
    Err(refused_by_all(settings, refusals))
}

/// All rungs, in the order in which they are tried. The typed tracepoint sees the same as the kprobe for half the instructions on a
/// connection's path (Linux 6.12: 3,300 and 6,500), and comes first where its programs cannot be preempted, and so miss nothing
/// that is not seen again.
fn order(types: &KernelTypes) -> [Rung; 3] {
    let [kprobe, tp_btf, tracepoint] = Rung::LADDER;
    if types.fitting.target(SET_STATE).is_some() && !types.preemptible {
        [tp_btf, kprobe, tracepoint]
    } else {
        Rung::LADDER
    }
}

fn attach_rung<'obj>(
    rung: Rung,
    settings: &ProbeSettings,
    kernel: &Kernel,
    places: &mut FreePlaces<'obj>,
) -> Result<Probe<'obj>, Refusal> {
    if rung == Rung::Tracepoint {
        return tracepoint::attach(settings, places);
    }
    let types = &kernel.types;
    if rung == Rung::Kprobe && !kernel_has_kprobes() {
        return Err(Refusal::new(Stage::Support, "the kernel has no kprobes (CONFIG_KPROBES)"));
    }
    if rung == Rung::TpBtf && types.fitting.target(SET_STATE).is_none() {
        let it = if Path::new(KERNEL_BTF).exists() { "tracepoint inet_sock_set_state" } else { "type information" };
        return Err(Refusal::new(Stage::Support, format!("the kernel shows no {it}")));
    }
    if rung == Rung::Kprobe && !kernel_has_ring_buffer() {
        return perf::attach(settings, types, places);
    }
    ring::attach(rung, settings, kernel, places)
}

/// Places for the objects that [`attach`] makes: a fresh one for each try.
pub struct Places([MaybeUninit<OpenObject>; Self::COUNT]);

impl Places {
    const COUNT: usize = Rung::LADDER.len() * Extras::LADDER.len();

    /// All empty.
    pub fn new() -> Self {
        Self([const { MaybeUninit::uninit() }; Self::COUNT])
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::io::{ErrorKind, Read};
    use std::mem;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::{AsFd, AsRawFd};
    use std::sync::atomic::Ordering;
    use std::time::{Duration, Instant};

    use libbpf_rs::RingBufferBuilder;
    use socket2::{SockFilter, SockRef};

    use super::*;
    use crate::config::Wanted;
    use crate::event::state;
    use crate::ingest::record::{Decoded, LetGo, decode};
    use crate::probe::extras::Again;
    use crate::probe::fds::MOST_HELD;

    /// Whether the peer finds a connection closed, or reset.
    #[derive(Clone, Copy, PartialEq)]
    enum Way {
        Fin,
        Reset,
    }

    /// What the programs are told to report.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Kind {
        Plain,
        Closes,
        States,
    }

    /// A classic BPF filter of a socket: of all segments only those with a FIN come in.
    fn only_fins(socket: &TcpStream) {
        let filter = |code: u32, or_else, value| SockFilter::new(code.try_into().unwrap(), 0, or_else, value);
        let load_flags = filter(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 13);
        let is_fin = filter(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 1, 1);
        let [all, nothing] = [u32::MAX, 0].map(|length| filter(libc::BPF_RET, 0, length));
        SockRef::from(socket).attach_filter(&[load_flags, is_fin, all, nothing]).unwrap();
    }

    /// The client's end first; calls `between` before the server's is closed, and before the client's has ended.
    fn close(way: Way, client: TcpStream, mut server: TcpStream, between: impl FnOnce()) {
        match way {
            // The server acknowledges the FIN by itself after 40 ms, and the client's end would end.
            Way::Fin => only_fins(&client),
            Way::Reset => SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap(),
        }
        drop(client);
        let read = server.read(&mut [0]).map_err(|error| error.kind());
        assert_eq!(read, if way == Way::Fin { Ok(0) } else { Err(ErrorKind::ConnectionReset) });
        between();
        drop(server);
    }

    fn take_main_away(probe: &mut Probe<'_>) {
        let main = probe.links.iter().position(|link| link.as_fd().as_raw_fd() == probe.fds.main_link).unwrap();
        drop(probe.links.remove(main));
    }

    /// The main program sees nothing (`misses_all`), or a connection's begin, and is taken away before its end.
    fn ends_are_recovered(rung: Rung, kind: Kind, preemptible: bool, misses_all: bool) {
        let (detailed, states) = (kind != Kind::Plain, kind == Kind::States);
        let settings = ProbeSettings {
            rung: Some(rung),
            detailed,
            wanted: Wanted { states, ..Wanted::CLOSES },
            ..ProbeSettings::default()
        };
        instructions::take_over();
        let mut types = KernelTypes::read(&settings).unwrap();
        types.preemptible |= preemptible;
        let at_end = Extras::NoAccept.look_again(rung, &settings, &types) == Again::AtEnd;
        // What a process does is looked at twice where it can be missed.
        if misses_all && (at_end || (rung == Rung::TpBtf && !types.preemptible)) {
            return;
        }
        let kernel = Kernel { types, maps: Cell::new(None) };
        let mut places = Places::new();
        let mut probe = match attach_rung(rung, &settings, &kernel, &mut FreePlaces::new(&mut places.0)) {
            Ok(probe) if probe.has_ring() => probe,
            Ok(_) => return eprintln!("skipped: no second look by a perf buffer"),
            Err(refusal) => return eprintln!("skipped: {refusal}"),
        };

        if misses_all {
            take_main_away(&mut probe);
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connections = [Way::Fin, Way::Reset].map(|way| {
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (way, client, listener.accept().unwrap().0)
        });
        // Of a reset by a process a program misses nothing that looks again at the end: nobody looks before the kernel has
        // forgotten the addresses. With the state that is told: what the server does is missed too, which it is not but here.
        let ends = connections.iter().flat_map(|(way, client, server)| match way {
            Way::Fin => vec![(client, state::FIN_WAIT2), (server, state::CLOSE_WAIT)],
            Way::Reset if at_end => vec![(server, state::ESTABLISHED)],
            Way::Reset => vec![(client, state::ESTABLISHED), (server, state::ESTABLISHED)],
        });
        let ends =
            ends.map(|(end, state)| ((end.local_addr().unwrap().port(), end.peer_addr().unwrap().port()), state));
        let mut missing: HashMap<_, _> = ends.collect();
        let expected = missing.len() as u64;

        let mut is_there = !misses_all;
        for (way, client, server) in connections {
            close(way, client, server, || {
                if mem::take(&mut is_there) {
                    take_main_away(&mut probe);
                }
            });
        }

        let read = std::cell::RefCell::new(Vec::new());
        let mut builder = RingBufferBuilder::new();
        let take = |bytes: &[u8]| {
            if LetGo::decode(bytes).is_none() {
                read.borrow_mut().push(decode(bytes).unwrap());
            }
            0
        };
        builder.add(probe.records(), take).unwrap();
        let buffer = builder.build().unwrap();
        let until = Instant::now() + Duration::from_secs(10);
        while !missing.is_empty() {
            let way = format!("{kind:?} by {}, preemptible: {preemptible}, all: {misses_all}", rung.name());
            let counts = probe.variables().unwrap().get();
            assert!(Instant::now() < until, "{way}: {missing:?} of {expected} did not come; {counts:?}");
            buffer.consume().unwrap();
            for Decoded { event, held, .. } in read.take() {
                if event.new_state != state::CLOSE {
                    continue;
                }
                if let Some(state) = missing.remove(&(event.local_port, event.remote_port)) {
                    assert!(kind != Kind::Closes || !at_end || event.old_state == state, "not {state}: {event:?}");
                    // Where accepts are not seen, it is told later whose it is: once its socket is let go of.
                    assert!(event.pid == std::process::id() || (event.pid == 0 && held), "{event:?}");
                } else {
                    let port = listener.local_addr().unwrap().port();
                    assert!(![event.local_port, event.remote_port].contains(&port), "once more: {event:?}");
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let recovered = probe.variables().unwrap().get().recovered.load(Ordering::SeqCst);
        let way = format!("{kind:?} by {}, preemptible: {preemptible}, all: {misses_all}", rung.name());
        assert!(recovered >= expected, "{way}: {recovered} of {expected} recovered");
    }

    /// What a forked child has no place for keeps the probe attached.
    #[test]
    fn no_rung_holds_more_descriptors_than_there_are_places_for() {
        instructions::take_over();
        for (rung, detailed) in Rung::LADDER.into_iter().flat_map(|rung| [(rung, false), (rung, true)]) {
            let wanted = Wanted { states: true, closes: true, retries: detailed, unsent: detailed };
            let settings = ProbeSettings { rung: Some(rung), detailed, wanted, ..ProbeSettings::default() };
            let mut places = Places::new();
            match attach(&settings, &mut places) {
                Ok(probe) => {
                    let held = probe.held().len();
                    println!("{} (detailed: {detailed}): {held}", rung.name());
                    assert!((5..=MOST_HELD).contains(&held), "{} (detailed: {detailed}): {held}", rung.name());
                }
                Err(error) => eprintln!("skipped: {error}"),
            }
        }
    }

    #[test]
    fn the_second_look_reports_what_the_main_program_has_missed() {
        for rung in [Rung::Kprobe, Rung::TpBtf] {
            for kind in [Kind::Plain, Kind::Closes, Kind::States] {
                for case in 0..4 {
                    ends_are_recovered(rung, kind, case & 1 != 0, case & 2 != 0);
                }
            }
        }
    }
}
