//! When to look at the ring: prompt when the host is quiet, in batches when it is busy.
//!
//! As a network driver switches between interrupts and polling, so does this: a quiet reader sleeps until the probe
//! wakes it; one that is woken again and again looks at intervals instead, and the probe wakes nobody. To be woken costs
//! as much as hundreds of records do, so the intervals are those in which a good batch comes. No timer runs while nothing
//! happens.

use std::time::{Duration, Instant};

/// Wake-ups nearer to each other than this make a burst.
const BURST_INTERVAL: Duration = Duration::from_millis(1);

/// A burst of this many wake-ups starts polling.
const BURST_WAKES: u32 = 8;

/// From look to look while polling, at first and at most: no event waits longer.
const FIRST_POLL: Duration = Duration::from_millis(1);
const LONGEST_POLL: Duration = Duration::from_millis(3);
const SHORTEST_POLL: Duration = Duration::from_micros(100);

/// Records that a look should find. The queue takes many times more, so that even a sudden flood sheds nothing.
const BATCH: u32 = 100;

/// This many looks in a row that found next to nothing end the polling.
const QUIET_LOOKS: u32 = 4;

/// When to look at the ring next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// After this time.
    Poll(Duration),
    /// When the probe says so.
    Sleep,
}

/// Tells a quiet host from a busy one.
#[derive(Default)]
pub struct Pace {
    last_wake: Option<Instant>,
    burst: u32,
    /// From look to look, while polling.
    polling: Option<Duration>,
    quiet: u32,
}

impl Pace {
    /// A sleep has ended with something to read.
    pub fn woken(&mut self, now: Instant) {
        let near = self.last_wake.is_some_and(|last| now - last < BURST_INTERVAL);
        self.burst = if near { self.burst + 1 } else { 0 };
        self.last_wake = Some(now);
        if self.burst >= BURST_WAKES {
            self.polling = Some(FIRST_POLL);
            self.quiet = 0;
            self.burst = 0;
        }
    }

    /// A look has found so many records.
    pub fn after_look(&mut self, found: usize) -> Next {
        let Some(interval) = self.polling else {
            return Next::Sleep;
        };
        // To be woken for each would be no more often.
        self.quiet = if found <= 1 { self.quiet + 1 } else { 0 };
        if self.quiet >= QUIET_LOOKS {
            self.polling = None;
            return Next::Sleep;
        }
        let found = u32::try_from(found).unwrap_or(u32::MAX).max(1);
        let interval = (interval * BATCH / found).clamp(SHORTEST_POLL, LONGEST_POLL);
        self.polling = Some(interval);
        Next::Poll(interval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    /// Woken again and again, until it polls.
    fn polling() -> Pace {
        let mut pace = Pace::default();
        let start = Instant::now();
        for wake in 0..=BURST_WAKES {
            assert_eq!(pace.after_look(1), Next::Sleep);
            pace.woken(start + wake * BURST_INTERVAL / 10);
        }
        pace
    }

    #[test]
    fn rare_events_are_waited_for() {
        let mut pace = Pace::default();
        let start = Instant::now();
        for wake in 0..100 {
            pace.woken(start + wake * 2 * BURST_INTERVAL);
            assert_eq!(pace.after_look(1), Next::Sleep);
        }
    }

    #[test]
    fn a_burst_starts_polling_and_silence_ends_it() {
        let mut pace = polling();
        for _ in 0..1000 {
            assert!(matches!(pace.after_look(3), Next::Poll(_)));
        }
        for _ in 1..QUIET_LOOKS {
            assert!(matches!(pace.after_look(0), Next::Poll(_)));
        }
        assert_eq!(pace.after_look(0), Next::Sleep);
        assert_eq!(pace.after_look(0), Next::Sleep);
    }

    #[test]
    fn a_look_finds_a_good_batch_at_any_load() {
        for (per_millisecond, expected) in [(2, LONGEST_POLL), (50, 2 * MILLISECOND), (400, MILLISECOND / 4)] {
            let mut pace = polling();
            let mut interval = FIRST_POLL;
            for _ in 0..10 {
                let found = (interval * per_millisecond).as_millis().try_into().unwrap();
                let Next::Poll(next) = pace.after_look(found) else { panic!("it sleeps at {per_millisecond}") };
                interval = next;
            }
            assert_eq!(interval, expected, "at {per_millisecond} a millisecond");
        }
        assert_eq!(polling().after_look(1_000_000), Next::Poll(SHORTEST_POLL));
    }
}
