//! More endpoints than the table of owners has room for.

use std::fs;
use std::process;

use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType};

use crate::api_watcher::{Direction, Event, OLDER, STATES_AND_CLOSES, TIMES, Watcher};
use crate::consumer::turn;
use crate::traffic::{Connection, V4};

/// The maps that hold owners for a process's probe.
fn tables(pid: u32) -> Vec<MapHandle> {
    let infos = fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap().flatten();
    let texts = infos.filter_map(|info| fs::read_to_string(info.path()).ok());
    let ids = texts.filter_map(|text| text.lines().find_map(|line| line.strip_prefix("map_id:\t")?.parse().ok()));
    let maps = ids.map(|id| MapHandle::from_map_id(id).unwrap());
    maps.filter(|map| ["owner_sets", "more_owners", "owners"].contains(&map.name().to_str().unwrap())).collect()
}

/// Fills all free places with keys that are no sockets.
fn fill(map: &MapHandle) {
    let value = vec![0x55; map.value_size() as usize];
    if map.map_type() == MapType::Array {
        (0..map.max_entries()).for_each(|set| map.update(&set.to_ne_bytes(), &value, MapFlags::ANY).unwrap());
        return;
    }
    // The last ones are refused because sockets take up places.
    for key in 1u64..=map.max_entries().into() {
        let _ = map.update(&key.to_ne_bytes(), &value, MapFlags::ANY);
    }
}

#[test]
fn an_endpoint_that_the_table_had_no_room_for_is_not_reported_as_older() {
    let _turn = turn();
    let mut watcher = Watcher::open(STATES_AND_CLOSES);
    // This one keeps its places.
    let _with_place = Connection::open(V4(), V4());
    let tables = tables(watcher.pid());
    assert!(!tables.is_empty());
    let most = u64::try_from(watcher.statistics(0)["tracked_most"]).unwrap();
    tables.iter().for_each(fill);
    let full = watcher.statistics(0);
    // In the array, entries of sockets are overwritten too. What other programs are closing just now is missing.
    assert!((most - 1000..=most).contains(&u64::try_from(full["tracked"]).unwrap()), "{full:?}");

    // Other programs may have closed something.
    tables.iter().for_each(fill);
    let connection = Connection::open(V4(), V4());
    let (local, remote) = connection.ports();
    connection.close_client_first();
    let of_end = |event: &Event| [(local, remote), (remote, local)].contains(&event.ports());
    let events = watcher.events_until(0, "both ends", |events| {
        events.iter().filter(|event| of_end(event) && event.is_end()).count() == 2
    });
    let counters = watcher.statistics(0);
    assert!(counters["lost_owners"] >= 2, "{counters:?}");
    assert!(counters["tracked"] <= counters["tracked_most"], "{counters:?}");
    for event in events.iter().filter(|event| of_end(event)) {
        assert_eq!(event.flags & OLDER, 0, "{event:#?}");
        if event.is_end() {
            assert!(!event.knows(TIMES), "{event:#?}");
            assert_eq!((event.age_ns, event.establish_ns), (0, 0), "{event:#?}");
            assert_eq!(event.direction, Direction::Unknown, "{event:#?}");
            // This process or none.
            assert!([process::id(), 0].contains(&event.pid), "{event:#?}");
        }
    }
}
