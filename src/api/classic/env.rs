//! The settings of consumers that cannot be recompiled: environment variables, read and checked in one place.

use std::path::PathBuf;
use std::sync::{Arc, Once};
use std::time::Duration;

use crate::config::{DEFAULT_SLOTS, MOST_SLOTS, ProbeSettings, Rung, SWEEP_INTERVAL, SWEEP_INTERVALS, Wanted};
use crate::error::Error;
use crate::event::filter::Filter;
use crate::sys::files;
use crate::sys::log::{self, Level};
use crate::sys::one_line::shortened;

/// What a failing start does to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// Exits with status 1, as consumers of the reference are used to.
    Exit,
    /// Goes on without close events.
    Continue,
}

/// All settings of the classic functions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// TCPEVENT_PROBE, TCPEVENT_BTF and TCPEVENT_FILTER.
    pub probe: ProbeSettings,
    /// TCPEVENT_QUEUE: slots.
    pub queue_slots: usize,
    /// TCPEVENT_NETLINK_INTERVAL: time between sweeps; `None` for no sweeps.
    pub sweep_interval: Option<Duration>,
    /// TCPEVENT_ON_ERROR.
    pub on_error: OnError,
    /// TCPEVENT_LOG.
    pub log: Level,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            probe: ProbeSettings { wanted: Wanted::CLOSES, ..ProbeSettings::default() },
            queue_slots: DEFAULT_SLOTS,
            sweep_interval: Some(SWEEP_INTERVAL),
            on_error: OnError::Exit,
            log: Level::Warn,
        }
    }
}

impl Settings {
    /// Reads them from a lookup of variables. An empty value counts as not set. All are checked: the settings hold
    /// every valid value, and the default for each invalid one, and there is an error for each of those.
    pub fn read(lookup: impl Fn(&'static str) -> Option<String>) -> (Self, Vec<Error>) {
        let mut settings = Self::default();
        let mut errors = Vec::new();
        let mut take = |name, takes, set: &mut dyn FnMut(&str) -> Option<()>| {
            let value = lookup(name).filter(|value| !value.is_empty());
            if let Some(value) = value.filter(|value| set(value).is_none()) {
                errors.push(Error::Setting { name, value: shortened(&value), takes });
            }
        };
        take("TCPEVENT_PROBE", "auto, kprobe, tp_btf or tracepoint", &mut |value| {
            settings.probe.rung = match value {
                "auto" => None,
                name => Some(Rung::LADDER.into_iter().find(|rung| rung.name() == name)?),
            };
            Some(())
        });
        take("TCPEVENT_QUEUE", "a number of slots from 1 to 1048576", &mut |value| {
            settings.queue_slots = value.parse().ok().filter(|slots| (1..=MOST_SLOTS).contains(slots))?;
            Some(())
        });
        take("TCPEVENT_NETLINK_INTERVAL", "seconds from 0.1 to 86400, or 0 for off", &mut |value| {
            let seconds: f64 = value.parse().ok()?;
            settings.sweep_interval = if seconds == 0.0 {
                None
            } else {
                Some(
                    (SWEEP_INTERVALS.start().as_secs_f64()..=SWEEP_INTERVALS.end().as_secs_f64())
                        .contains(&seconds)
                        .then(|| Duration::from_secs_f64(seconds))?,
                )
            };
            Some(())
        });
        take("TCPEVENT_ON_ERROR", "exit or continue", &mut |value| {
            settings.on_error = match value {
                "exit" => OnError::Exit,
                "continue" => OnError::Continue,
                _ => return None,
            };
            Some(())
        });
        take("TCPEVENT_LOG", "error, warn, info or debug", &mut |value| {
            settings.log = Level::NAMES.into_iter().find(|(name, _)| *name == value)?.1;
            Some(())
        });
        take("TCPEVENT_BTF", "the path of a readable BTF file", &mut |value| {
            let path = PathBuf::from(value);
            files::readable_btf(&path).is_some().then_some(())?;
            settings.probe.btf = Some(path);
            Some(())
        });
        if let Some(text) = lookup("TCPEVENT_FILTER") {
            match Filter::parse("TCPEVENT_FILTER", &text) {
                Ok(filter) => settings.probe.filter = Arc::new(filter),
                Err(error) => errors.push(error),
            }
        }
        // The plain programs have no filter.
        settings.probe.detailed = !settings.probe.filter.is_empty();
        (settings, errors)
    }

    /// Reads them from the environment. As for getenv(3), the caller must not change it meanwhile.
    ///
    /// A program that runs with more privileges than its caller (set-user-ID, file capabilities) ignores them: the
    /// caller chose them, and they name files that would be read with those privileges.
    pub fn from_environment() -> (Self, Vec<Error>) {
        if is_privileged_by_file() {
            warn_of_ignored();
            return (Self::default(), Vec::new());
        }
        Self::read(|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
    }
}

/// The variables that are read.
const VARIABLES: [&str; 7] = [
    "TCPEVENT_PROBE",
    "TCPEVENT_QUEUE",
    "TCPEVENT_NETLINK_INTERVAL",
    "TCPEVENT_ON_ERROR",
    "TCPEVENT_LOG",
    "TCPEVENT_BTF",
    "TCPEVENT_FILTER",
];

/// Whether the program's file gave it privileges that its caller lacks (kernel: AT_SECURE, as for ld.so).
fn is_privileged_by_file() -> bool {
    // SAFETY: takes and returns a number.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// Warns once of variables that are set but ignored.
fn warn_of_ignored() {
    static SAID: Once = Once::new();
    let is_set = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let names: Vec<_> = VARIABLES.into_iter().filter(is_set).collect();
    if !names.is_empty() {
        SAID.call_once(|| {
            let names = names.join(", ");
            log::line(
                Level::Warn,
                format_args!(
                    "{names} ignored: the program's file gives it privileges, so the environment does not count"
                ),
            );
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> (Settings, Vec<String>) {
        let (settings, errors) = Settings::read(|name| {
            let pair = pairs.iter().find(|(key, _)| *key == name)?;
            Some(pair.1.to_owned())
        });
        (settings, errors.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn nothing_set_gives_the_defaults() {
        let (settings, errors) = read(&[("TCPEVENT_QUEUE", "")]);
        assert_eq!(settings, Settings::default());
        assert_eq!(settings.queue_slots, 1024);
        assert_eq!(settings.sweep_interval, Some(Duration::from_millis(6200)));
        assert!(errors.is_empty());
    }

    #[test]
    fn every_variable_is_taken() {
        let (settings, errors) = read(&[
            ("TCPEVENT_PROBE", "tp_btf"),
            ("TCPEVENT_QUEUE", "5000"),
            ("TCPEVENT_NETLINK_INTERVAL", "0.5"),
            ("TCPEVENT_ON_ERROR", "continue"),
            ("TCPEVENT_LOG", "debug"),
            ("TCPEVENT_BTF", "/proc/self/exe"),
            ("TCPEVENT_FILTER", "pid 7"),
        ]);
        assert_eq!(errors, [""; 0]);
        assert_eq!(
            settings,
            Settings {
                probe: ProbeSettings {
                    rung: Some(Rung::TpBtf),
                    btf: Some("/proc/self/exe".into()),
                    filter: Arc::new(Filter { pid: Some(7), ..Filter::default() }),
                    detailed: true,
                    wanted: Wanted::CLOSES,
                },
                queue_slots: 5000,
                sweep_interval: Some(Duration::from_millis(500)),
                on_error: OnError::Continue,
                log: Level::Debug,
            }
        );
        assert_eq!(read(&[("TCPEVENT_NETLINK_INTERVAL", "0")]).0.sweep_interval, None);
        assert_eq!(read(&[("TCPEVENT_PROBE", "auto")]).0.probe.rung, None);
    }

    #[test]
    fn a_bad_value_names_the_variable_the_value_and_what_it_takes() {
        for (name, value) in [
            ("TCPEVENT_PROBE", "fentry"),
            ("TCPEVENT_QUEUE", "0"),
            ("TCPEVENT_QUEUE", "-1"),
            ("TCPEVENT_QUEUE", "1048577"),
            ("TCPEVENT_QUEUE", "many"),
            ("TCPEVENT_NETLINK_INTERVAL", "0.05"),
            ("TCPEVENT_NETLINK_INTERVAL", "-1"),
            ("TCPEVENT_NETLINK_INTERVAL", "NaN"),
            ("TCPEVENT_NETLINK_INTERVAL", "inf"),
            ("TCPEVENT_NETLINK_INTERVAL", "6,2"),
            ("TCPEVENT_ON_ERROR", "ignore"),
            ("TCPEVENT_LOG", "trace"),
            ("TCPEVENT_BTF", "/no/such/file"),
            ("TCPEVENT_BTF", "/dev/zero"),
            ("TCPEVENT_BTF", "/proc"),
        ] {
            let (settings, errors) = read(&[(name, value)]);
            assert_eq!(settings, Settings::default(), "{name}={value}");
            assert_eq!(errors.len(), 1, "{name}={value}");
            assert!(errors[0].starts_with(&format!("{name}={value:?} is not valid: it takes ")), "{}", errors[0]);
        }
    }

    #[test]
    fn a_bad_filter_points_at_the_word() {
        let (settings, errors) = read(&[("TCPEVENT_FILTER", "dport https")]);
        assert_eq!(settings, Settings::default());
        assert!(errors[0].starts_with("TCPEVENT_FILTER=\"dport https\": word 2, \"https\", must be "), "{errors:?}");
    }

    #[test]
    fn one_bad_value_leaves_the_others() {
        let (settings, errors) = read(&[("TCPEVENT_QUEUE", "x"), ("TCPEVENT_LOG", "info")]);
        assert_eq!(settings.log, Level::Info);
        assert_eq!(errors.len(), 1);
    }
}
