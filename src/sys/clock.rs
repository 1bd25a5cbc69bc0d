//! Converts the probe's monotonic timestamps to the wall clock.
//!
//! `bpf_ktime_get_ns` reads `CLOCK_MONOTONIC`, which stops in suspend and ignores steps of the wall clock. The offset
//! between the two is therefore measured for each batch of records, which are at most some milliseconds old by then.

use std::fs;
use std::os::unix::fs::MetadataExt;

/// The inode number of the initial time namespace (include/linux/proc_ns.h).
const PROC_TIME_INIT_INO: u64 = 0xEFFF_FFFA;

/// How far the monotonic clock of this process's time namespace is ahead of the kernel's, which the probe reads. `None`
/// if unknown: once the process has created a time namespace for its children, the kernel shows the offsets of that one
/// (proc_timens_show_offsets). Without /proc the offset is taken to be 0.
pub fn namespace_offset_ns() -> Option<i64> {
    let inode = |name: &str| fs::metadata(format!("/proc/self/ns/{name}")).ok().map(|file| file.ino());
    match inode("time") {
        None | Some(PROC_TIME_INIT_INO) => Some(0),
        own if own == inode("time_for_children") => {
            monotonic_offset_ns(&fs::read_to_string("/proc/self/timens_offsets").ok()?)
        }
        Some(_) => None,
    }
}

/// Each line has a clock, seconds, and nanoseconds to add.
fn monotonic_offset_ns(offsets: &str) -> Option<i64> {
    let mut numbers = offsets.lines().find_map(|line| line.strip_prefix("monotonic"))?.split_whitespace();
    let (seconds, ns): (i64, i64) = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
    seconds.checked_mul(1_000_000_000)?.checked_add(ns)
}

/// Offset from the monotonic clock to the wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WallClock {
    offset_ns: i128,
}

/// Reads of the clock pair; the tightest one counts.
const READS: usize = 3;

impl WallClock {
    /// Measures the current offset.
    pub fn now() -> Self {
        Self::measure(read_clock)
    }

    /// The wall clock is read between two reads of the monotonic one; a preemption between them shows as a long gap,
    /// and a tighter read is preferred.
    fn measure(mut read: impl FnMut(libc::clockid_t) -> i128) -> Self {
        let (_, offset_ns) = (0..READS)
            .map(|_| {
                let before = read(libc::CLOCK_MONOTONIC);
                let wall = read(libc::CLOCK_REALTIME);
                let after = read(libc::CLOCK_MONOTONIC);
                (after - before, wall - (before + after) / 2)
            })
            .min()
            .expect("READS is not 0");
        Self { offset_ns }
    }

    /// A monotonic timestamp in nanoseconds since 1970.
    pub fn wall_ns(self, monotonic_ns: u64) -> u64 {
        u64::try_from(i128::from(monotonic_ns) + self.offset_ns).unwrap_or(0)
    }
}

fn read_clock(clock: libc::clockid_t) -> i128 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec, and the two clocks read here exist on every Linux.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
}

/// Nanoseconds since 1970, now.
pub fn wall_now_ns() -> u64 {
    u64::try_from(read_clock(libc::CLOCK_REALTIME)).unwrap_or(0)
}

/// Nanoseconds of the monotonic clock, now.
pub fn monotonic_now_ns() -> u64 {
    u64::try_from(read_clock(libc::CLOCK_MONOTONIC)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_of_now_is_the_wall_clock_of_now() {
        let clock = WallClock::now();
        let distance = clock.wall_ns(monotonic_now_ns()).abs_diff(wall_now_ns());
        assert!(distance < 100_000_000, "{distance} ns apart");
    }

    #[test]
    fn an_offset_is_that_of_the_monotonic_clock() {
        let offsets = |seconds, ns| format!("monotonic  {seconds:>10} {ns:>9}\nboottime           7         8\n");
        assert_eq!(monotonic_offset_ns(&offsets(86_400, 5)), Some(86_400_000_000_005));
        assert_eq!(monotonic_offset_ns(&offsets(-2, 999_999_999)), Some(-1_000_000_001));
        for other in ["", "boottime 0 0\n", "monotonic 1\n", "monotonic x 0\n", "monotonic 9223372036854775807 0\n"] {
            assert_eq!(monotonic_offset_ns(other), None, "{other}");
        }
    }

    #[test]
    fn the_tightest_read_counts() {
        // Two reads are torn by a preemption of 5 s; the third is clean: monotonic 100, wall 1000, monotonic 102.
        let mut values = [0, 5_000_000_000, 5_000_000_000, 10, 20, 5_000_000_000, 100, 1000, 102].into_iter();
        let clock = WallClock::measure(|_| values.next().unwrap());
        assert_eq!(clock.wall_ns(101), 1000);
    }

    #[test]
    fn a_wall_clock_before_1970_gives_0() {
        let mut values = [100, -1_000_000, 100].into_iter().cycle();
        let clock = WallClock::measure(|_| values.next().unwrap());
        assert_eq!(clock.wall_ns(50), 0);
    }
}
