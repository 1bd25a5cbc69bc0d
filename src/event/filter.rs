//! Which events are wanted: a text of words, as `TCPEVENT_FILTER` and `tcpevent_options.filter` take it.
//!
//! The BPF program applies it (see `bpf/filter.h`). Snapshots, and owners found by inode, are matched here.

use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::str::FromStr;

use super::endpoint::normal_form;
use crate::error::Error;
use crate::event::{Event, Failure, Kind, NO_USER};
use crate::sys::files;
use crate::sys::one_line::shortened;

/// A network prefix. An IPv4 prefix is in its `::ffff:` form, 96 bits longer, so that it matches either form of an
/// address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// Significant bits, 0 to 128.
    pub length: u8,
    /// All other bits are 0.
    pub addr: [u8; 16],
}

/// Bits of the `::ffff:` form before the IPv4 address.
const V4_IN_V6: u8 = 96;

/// A set of ports, as bits: port `p` is bit `p % 8` of byte `p / 8`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSet(Box<[u8; PortSet::BYTES]>);

/// What an event must match. The default matches all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// `AF_INET` or `AF_INET6`.
    pub(crate) family: Option<u16>,
    /// Owner: thread group ID.
    pub(crate) pid: Option<u32>,
    /// Owner: user ID.
    pub(crate) uid: Option<u32>,
    /// Inode number of a network namespace.
    pub(crate) netns: Option<u32>,
    /// ID of a cgroup.
    pub(crate) cgroup: Option<u64>,
    /// Any of these.
    pub(crate) local_ports: Option<PortSet>,
    /// Any of these.
    pub(crate) remote_ports: Option<PortSet>,
    /// Any of these; if empty, any address.
    pub(crate) local_prefixes: Vec<Prefix>,
    /// Any of these; if empty, any address.
    pub(crate) remote_prefixes: Vec<Prefix>,
    /// Only closes of connections that were never established.
    pub(crate) failed_only: bool,
}

const PREFIX: &str = "an address or prefix, such as 10.0.0.0/8 or 2001:db8::1";
const PORT: &str = "a port or range of ports, such as 443 or 8000-8999";
const FAMILY: &str = "inet or inet6";
const NUMBER: &str = "a number";
const NETNS: &str = "an inode number, self, or the path of a network namespace";
const CGROUP: &str = "the ID of a cgroup, or the path of its folder below /sys/fs/cgroup";
const KEYS: &str = "src, dst, sport, dport, family, pid, uid, netns, cgroup or failed";

/// Words as in `TCPEVENT_FILTER`: `dport 443,8000-8999 dst 10.0.0.0/8`. `tcpevent_open` in `tcpevent.h` lists all.
impl FromStr for Filter {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse("filter", text)
    }
}

impl Filter {
    /// Parses a text. `name` is the user's name for it, for the error.
    pub fn parse(name: &'static str, text: &str) -> Result<Self, Error> {
        let mut filter = Self::default();
        let mut words = text.split_whitespace().zip(1..);
        let fault = |at: usize, word: &str, takes| Error::Filter {
            name,
            text: shortened(text),
            word: shortened(word),
            at,
            takes,
        };
        while let Some((key, at)) = words.next() {
            if key == "failed" {
                filter.failed_only = true;
                continue;
            }
            let takes = takes(key).ok_or_else(|| fault(at, key, KEYS))?;
            let (values, at) = words.next().ok_or_else(|| Error::FilterEnd { name, text: shortened(text), takes })?;
            for value in values.split(',') {
                // The caller determines how many there are.
                for prefixes in [&mut filter.local_prefixes, &mut filter.remote_prefixes] {
                    prefixes.try_reserve(1).map_err(|_| Error::NoMemory { what: name })?;
                }
                filter.add(key, value).ok_or_else(|| fault(at, value, takes))?;
            }
        }
        Ok(filter)
    }

    /// `None` if the key does not take the value, or a second one.
    fn add(&mut self, key: &str, value: &str) -> Option<()> {
        match key {
            "src" => self.local_prefixes.push(value.parse().ok()?),
            "dst" => self.remote_prefixes.push(value.parse().ok()?),
            "sport" => self.local_ports.get_or_insert_default().add(value)?,
            "dport" => self.remote_ports.get_or_insert_default().add(value)?,
            "family" => once(&mut self.family, family(value)?)?,
            "pid" => once(&mut self.pid, value.parse().ok().filter(|pid| *pid != 0)?)?,
            "uid" => once(&mut self.uid, value.parse().ok().filter(|uid| *uid != NO_USER)?)?,
            "netns" => once(&mut self.netns, netns(value)?)?,
            _ => once(&mut self.cgroup, cgroup(value)?)?,
        }
        Some(())
    }

    /// Whether it matches all events.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the owner matches.
    pub fn fits_owner(&self, event: &Event) -> bool {
        self.pid.is_none_or(|pid| pid == event.pid) && self.uid.is_none_or(|uid| uid == event.uid)
    }

    /// Whether the whole event matches.
    pub fn fits(&self, event: &Event) -> bool {
        self.fits_but_for_owner(event) && self.fits_owner(event)
    }

    /// Whether everything but the owner matches.
    pub fn fits_but_for_owner(&self, event: &Event) -> bool {
        let is_ipv4 = i32::from(event.family) == libc::AF_INET;
        let has_prefix = |list: &[Prefix], addr| {
            let contains = |prefix: &Prefix| prefix.contains(normal_form(event.family, addr));
            list.is_empty() || list.iter().any(|prefix| contains(prefix) && (prefix.is_for_ipv4() || !is_ipv4))
        };
        let has_port = |set: &Option<PortSet>, port| set.as_ref().is_none_or(|set| set.contains(port));
        self.family.is_none_or(|family| family == event.family)
            && has_port(&self.local_ports, event.local_port)
            && has_port(&self.remote_ports, event.remote_port)
            && has_prefix(&self.local_prefixes, &event.local_addr)
            && has_prefix(&self.remote_prefixes, &event.remote_addr)
            && self.netns.is_none_or(|netns| netns == event.netns)
            && self.cgroup.is_none_or(|cgroup| cgroup == event.cgroup)
            && (!self.failed_only || event.failure != Failure::None || event.kind == Kind::Retry)
    }
}

/// What the value of a key must be. `None` if there is no such key, or it has no value.
fn takes(key: &str) -> Option<&'static str> {
    Some(match key {
        "src" | "dst" => PREFIX,
        "sport" | "dport" => PORT,
        "family" => FAMILY,
        "pid" | "uid" => NUMBER,
        "netns" => NETNS,
        "cgroup" => CGROUP,
        _ => return None,
    })
}

/// An event has only one of these: two different values would match nothing.
fn once<T: Copy + PartialEq>(place: &mut Option<T>, value: T) -> Option<()> {
    (*place.get_or_insert(value) == value).then_some(())
}

fn family(value: &str) -> Option<u16> {
    let family = match value {
        "inet" => libc::AF_INET,
        "inet6" => libc::AF_INET6,
        _ => return None,
    };
    u16::try_from(family).ok()
}

fn netns(value: &str) -> Option<u32> {
    let path = match value {
        // That of the thread: threads of a process may differ.
        "self" => "/proc/thread-self/ns/net",
        path if path.starts_with('/') => path,
        number => return number.parse().ok().filter(|inode| *inode != 0),
    };
    u32::try_from(files::network_namespace(Path::new(path))?.ino()).ok()
}

fn cgroup(value: &str) -> Option<u64> {
    if value.starts_with('/') {
        // A cgroup's ID is the inode number of its folder (kernel: cgroup_id).
        files::cgroup_folder(Path::new(value)).map(|folder| folder.ino())
    } else {
        value.parse().ok().filter(|id| *id != 0)
    }
}

impl Prefix {
    /// Whether it can match IPv4 addresses: ::/0, say, does not.
    pub fn is_for_ipv4(&self) -> bool {
        self.length >= V4_IN_V6
    }

    fn contains(&self, addr: u128) -> bool {
        let differs = addr ^ u128::from_be_bytes(self.addr);
        differs.checked_shr(128 - u32::from(self.length)).unwrap_or(0) == 0
    }
}

impl FromStr for Prefix {
    type Err = ();

    /// `ADDRESS` or `ADDRESS/LENGTH`. Bits beyond the length are ignored.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (addr, length) = match text.split_once('/') {
            Some((addr, length)) => (addr, Some(length.parse::<u8>().map_err(drop)?)),
            None => (text, None),
        };
        let (addr, most, before) = match addr.parse().map_err(drop)? {
            IpAddr::V4(v4) => (v4.to_ipv6_mapped(), 32, V4_IN_V6),
            IpAddr::V6(v6) => (v6, 128, 0),
        };
        let length = length.unwrap_or(most);
        if length > most {
            return Err(());
        }
        let length = length + before;
        let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
        Ok(Self { length, addr: (addr.to_bits() & mask).to_be_bytes() })
    }
}

impl PortSet {
    const BYTES: usize = 65_536 / 8;

    /// The set in the BPF program's form.
    pub fn bits(&self) -> &[u8] {
        self.0.as_slice()
    }

    fn contains(&self, port: u16) -> bool {
        self.0[usize::from(port >> 3)] & 1 << (port & 7) != 0
    }

    /// Adds a port or range.
    fn add(&mut self, text: &str) -> Option<()> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
        if first > last {
            return None;
        }
        for port in first..=last {
            self.0[usize::from(port >> 3)] |= 1 << (port & 7);
        }
        Some(())
    }
}

impl Default for PortSet {
    fn default() -> Self {
        Self(Box::new([0; Self::BYTES]))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::event::Kind;

    fn parse(text: &str) -> Filter {
        Filter::parse("TCPEVENT_FILTER", text).unwrap_or_else(|error| panic!("{error}"))
    }

    fn error(text: &str) -> String {
        Filter::parse("TCPEVENT_FILTER", text).expect_err(text).to_string()
    }

    fn v4(addr: [u8; 4]) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&addr);
        bytes
    }

    /// From 10.0.0.1:40000 to 172.217.161.228:443.
    fn event() -> Event {
        Event {
            family: 2,
            local_port: 40_000,
            remote_port: 443,
            local_addr: v4([10, 0, 0, 1]),
            remote_addr: v4([172, 217, 161, 228]),
            pid: 7,
            uid: 1000,
            netns: 4_026_531_840,
            cgroup: 815,
            ..Event::of(Kind::Close)
        }
    }

    #[test]
    fn nothing_named_fits_all() {
        for text in ["", "  \t\n"] {
            assert!(parse(text).is_empty());
            assert!(parse(text).fits(&event()));
        }
    }

    #[test]
    fn every_key_fits_what_it_names_and_nothing_else() {
        for (fitting, other) in [
            ("dst 172.217.161.228 dport 443", "dst 172.217.161.229 dport 443"),
            ("dst 172.217.161.228 dport 443", "dst 172.217.161.228 dport 444"),
            ("src 10.0.0.0/8", "src 11.0.0.0/8"),
            ("src 192.168.0.0/16,10.0.0.1", "src 192.168.0.0/16,10.0.0.2"),
            ("src 192.168.0.0/16 src 10.0.0.1", "src 192.168.0.0/16 src 10.0.0.2"),
            ("dst 0.0.0.0/0", "dst ::/96"),
            ("dst 172.0.0.0/8,::/0", "dst ::/0"),
            ("dst ::ffff:172.217.0.0/112", "dst ::ffff:172.218.0.0/112"),
            ("sport 39999-40001", "sport 40001-65535"),
            ("dport 80,443", "dport 80,444"),
            ("dport 0-65535", "dport 0"),
            ("family inet", "family inet6"),
            ("pid 7", "pid 8"),
            ("uid 1000", "uid 0"),
            ("netns 4026531840", "netns 1"),
            ("cgroup 815", "cgroup 816"),
            ("pid 7 uid 1000", "pid 7 uid 1001"),
            ("", "failed"),
        ] {
            assert!(parse(fitting).fits(&event()), "{fitting}");
            assert!(!parse(other).fits(&event()), "{other}");
        }
        assert!(parse("failed").fits(&Event { failure: Failure::GivenUp, ..event() }));
        assert!(parse("failed").fits(&Event { kind: Kind::Retry, ..event() }));
    }

    #[test]
    fn an_ipv4_prefix_fits_the_mapped_form() {
        let mapped = |addr: [u8; 4]| Ipv4Addr::from(addr).to_ipv6_mapped().octets();
        let event = Event { family: 10, remote_addr: mapped([172, 217, 161, 228]), ..event() };
        assert!(parse("dst 172.217.0.0/16").fits(&event));
        assert!(!parse("dst 172.218.0.0/16").fits(&event));
        assert!(!parse("dst 172.217.0.0/16 family inet").fits(&event));
        assert!(parse("dst ::/0").fits(&event));
    }

    #[test]
    fn places_are_named_by_path_too() {
        let this = std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino();
        assert_eq!(parse("netns self").netns.map(u64::from), Some(this));
        assert_eq!(parse("netns /proc/self/ns/net").netns.map(u64::from), Some(this));
    }

    #[test]
    fn a_file_of_another_kind_is_no_place() {
        // A file, a folder, a device, a namespace of another kind; and a FIFO without a writer.
        let fifo = std::env::temp_dir().join(format!("tcpevent-fifo-{}", std::process::id()));
        let fifo = fifo.to_str().unwrap();
        let path = std::ffi::CString::new(fifo).unwrap();
        // SAFETY: a NUL-terminated path.
        assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
        for path in ["/etc/passwd", "/proc", "/", "/dev/null", "/proc/self/ns/uts", fifo] {
            for key in ["netns", "cgroup"] {
                assert!(error(&format!("{key} {path}")).contains("word 2, "), "{key} {path}");
            }
        }
        assert!(error("cgroup /proc/self/ns/net").contains("word 2, "));
        std::fs::remove_file(fifo).unwrap();
    }

    #[test]
    fn an_error_points_at_the_word() {
        assert_eq!(
            error("dst 172.217.161.x dport 443"),
            "TCPEVENT_FILTER=\"dst 172.217.161.x dport 443\": word 2, \"172.217.161.x\", must be an address or prefix, \
             such as 10.0.0.0/8 or 2001:db8::1"
        );
        for (text, at, word) in [
            ("host 10.0.0.1", 1, "host"),
            ("dport 443 dst 10.0.0.1/33", 4, "10.0.0.1/33"),
            ("dst 10.0.0.1,", 2, ""),
            ("dst ::/129", 2, "::/129"),
            ("dport 65536", 2, "65536"),
            ("dport 9-8", 2, "9-8"),
            ("dport 443,https", 2, "https"),
            ("family 4", 2, "4"),
            ("pid 0", 2, "0"),
            ("pid 1,2", 2, "2"),
            ("uid -1", 2, "-1"),
            ("uid 4294967295", 2, "4294967295"),
            ("netns /nowhere", 2, "/nowhere"),
            ("cgroup /proc/self/comm", 2, "/proc/self/comm"),
            ("failed yes", 2, "yes"),
        ] {
            let error = error(text);
            assert!(error.contains(&format!("word {at}, {word:?}, must be ")), "{error}");
        }
        assert_eq!(
            error("failed dport"),
            "TCPEVENT_FILTER=\"failed dport\": the value is missing at the end: a port or range of ports, such as 443 or \
             8000-8999"
        );
    }

    #[test]
    fn an_error_stays_short() {
        assert!(error(&"x".repeat(1 << 20)).len() < 1000);
        assert!(error(&format!("dst {}", "1,".repeat(1 << 20))).len() < 1000);
    }

    proptest! {
        #[test]
        fn hostile_texts_parse_or_are_refused_in_one_line(text in "[a-z0-9.:/, \u{0}-\u{ff}-]{0,64}") {
            if let Err(error) = Filter::parse("filter", &text) {
                prop_assert!(!error.to_string().contains('\n'), "{}", error);
            }
        }

        /// Compared with plain arithmetic on addresses.
        #[test]
        fn a_prefix_holds_the_addresses_whose_first_bits_are_its_own(a: u128, b: u128, length in 0u8..=128, same in 0u32..=128) {
            // Random addresses rarely share bits.
            let keep = u128::MAX.checked_shl(128 - same).unwrap_or(0);
            let b = a & keep | b & !keep;
            let prefix: Prefix = format!("{}/{length}", Ipv6Addr::from_bits(a)).parse().unwrap();
            let expected = length == 0 || a >> (128 - length) == b >> (128 - length);
            prop_assert_eq!(prefix.contains(b), expected);
            let event = Event { family: 10, remote_addr: b.to_be_bytes(), ..Event::of(Kind::Close) };
            let filter = Filter { remote_prefixes: vec![prefix], ..Filter::default() };
            prop_assert_eq!(filter.fits(&event), expected);
        }
    }
}
