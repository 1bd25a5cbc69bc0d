//! The kernel's list of tracepoints: each has a number, and a text that says where in its record each field is.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, open, openat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

/// Where tracefs is mounted, as a rule. The second one mounts itself where debugfs is mounted.
const PLACES: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// More than any tracepoint's format has: that of `inet_sock_set_state` has 3,000 bytes.
const MOST_BYTES: u64 = 1 << 18;

/// The folder of tracefs.
pub struct TraceFs(OwnedFd);

/// A field of a tracepoint's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// In bytes from the start of the record.
    pub offset: u16,
    /// In bytes.
    pub size: u16,
}

/// What a tracepoint's record has.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Format(Vec<(String, Field)>);

impl TraceFs {
    /// Where it is mounted; else by a mount that nobody else sees, which takes Linux 5.2 and CAP_SYS_ADMIN.
    pub fn open() -> io::Result<Self> {
        let mut refusal = io::Error::from(io::ErrorKind::NotFound);
        for place in PLACES {
            // Of the folder that it is mounted on, this one is not there.
            match open_folder(&format!("{place}/events")).and_then(|_| open_folder(place)) {
                Ok(folder) => return Ok(Self(folder)),
                Err(error) if error.kind() != io::ErrorKind::NotFound => refusal = error,
                Err(_) => {}
            }
        }
        mount().map(Self).map_err(|_| refusal)
    }

    /// A tracepoint's number.
    pub fn id(&self, category: &str, name: &str) -> io::Result<u64> {
        let text = self.read(category, name, "id")?;
        text.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
    }

    /// What a tracepoint's record has.
    pub fn format(&self, category: &str, name: &str) -> io::Result<Format> {
        Ok(Format::parse(&self.read(category, name, "format")?))
    }

    fn read(&self, category: &str, name: &str, file: &str) -> io::Result<String> {
        let path = format!("events/{category}/{name}/{file}");
        let fd = openat(&self.0, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut text = Vec::new();
        File::from(fd).take(MOST_BYTES).read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

impl Format {
    /// Reads the lines `field:TYPE NAME; offset:N; size:N; signed:N;` of a format file. All others say nothing of fields.
    pub fn parse(text: &str) -> Self {
        Self(text.lines().filter_map(parse_field).collect())
    }

    /// A field by its name.
    pub fn field(&self, name: &str) -> Option<Field> {
        self.0.iter().find(|(field, _)| field == name).map(|(_, field)| *field)
    }
}

fn parse_field(line: &str) -> Option<(String, Field)> {
    let mut parts = line.trim().split(';').map(str::trim);
    let declaration = parts.next()?.strip_prefix("field:")?;
    // As in `__u8 saddr[4]`.
    let name = declaration.rsplit_once([' ', '*']).map_or(declaration, |(_, name)| name);
    let name = name.split_once('[').map_or(name, |(name, _)| name);
    let offset = parts.next()?.strip_prefix("offset:")?.parse().ok()?;
    let size = parts.next()?.strip_prefix("size:")?.parse().ok()?;
    (!name.is_empty()).then(|| (name.to_owned(), Field { offset, size }))
}

fn open_folder(path: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    Ok(open(path, flags, Mode::empty())?)
}

/// Mounts tracefs nowhere: it is there for whoever has the descriptor, and gone with it.
fn mount() -> io::Result<OwnedFd> {
    let context = fsopen("tracefs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const COMMON: &str = "format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;
\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

\tfield:const void * skaddr;\toffset:8;\tsize:8;\tsigned:0;
\tfield:int oldstate;\toffset:16;\tsize:4;\tsigned:1;
\tfield:int newstate;\toffset:20;\tsize:4;\tsigned:1;
\tfield:__u16 sport;\toffset:24;\tsize:2;\tsigned:0;
\tfield:__u16 dport;\toffset:26;\tsize:2;\tsigned:0;
";

    /// `tcp:tcp_set_state` of Linux 4.15.
    const OF_4_15: &str = "\tfield:__u8 saddr[4];\toffset:28;\tsize:4;\tsigned:0;
\tfield:__u8 daddr[4];\toffset:32;\tsize:4;\tsigned:0;
\tfield:__u8 saddr_v6[16];\toffset:36;\tsize:16;\tsigned:0;
\tfield:__u8 daddr_v6[16];\toffset:52;\tsize:16;\tsigned:0;

print fmt: \"sport=%hu dport=%hu saddr=%pI4\", REC->sport, REC->dport, REC->saddr
";

    /// `sock:inet_sock_set_state` of Linux 4.19 and 5.4.
    const OF_5_4: &str = "\tfield:__u16 family;\toffset:28;\tsize:2;\tsigned:0;
\tfield:__u8 protocol;\toffset:30;\tsize:1;\tsigned:0;
\tfield:__u8 saddr[4];\toffset:31;\tsize:4;\tsigned:0;
\tfield:__u8 daddr[4];\toffset:35;\tsize:4;\tsigned:0;
\tfield:__u8 saddr_v6[16];\toffset:39;\tsize:16;\tsigned:0;
\tfield:__u8 daddr_v6[16];\toffset:55;\tsize:16;\tsigned:0;
";

    /// The same since Linux 5.6.
    const OF_5_6: &str = "\tfield:__u16 family;\toffset:28;\tsize:2;\tsigned:0;
\tfield:__u16 protocol;\toffset:30;\tsize:2;\tsigned:0;
\tfield:__u8 saddr[4];\toffset:32;\tsize:4;\tsigned:0;
\tfield:__u8 daddr[4];\toffset:36;\tsize:4;\tsigned:0;
\tfield:__u8 saddr_v6[16];\toffset:40;\tsize:16;\tsigned:0;
\tfield:__u8 daddr_v6[16];\toffset:56;\tsize:16;\tsigned:0;
";

    const fn at(offset: u16, size: u16) -> Field {
        Field { offset, size }
    }

    #[test]
    fn the_format_of_each_kernel_is_read() {
        for (rest, family, protocol, local_v4, remote_v6) in [
            (OF_4_15, None, None, at(28, 4), at(52, 16)),
            (OF_5_4, Some(at(28, 2)), Some(at(30, 1)), at(31, 4), at(55, 16)),
            (OF_5_6, Some(at(28, 2)), Some(at(30, 2)), at(32, 4), at(56, 16)),
        ] {
            let format = Format::parse(&format!("name: inet_sock_set_state\nID: 2287\n{COMMON}{rest}"));
            assert_eq!(format.field("skaddr"), Some(at(8, 8)));
            assert_eq!(format.field("newstate"), Some(at(20, 4)));
            assert_eq!(format.field("dport"), Some(at(26, 2)));
            assert_eq!((format.field("family"), format.field("protocol")), (family, protocol));
            assert_eq!((format.field("saddr"), format.field("daddr_v6")), (Some(local_v4), Some(remote_v6)));
            assert_eq!(format.field("REC->sport"), None);
        }
    }

    /// As root only: tracefs is root's own.
    #[test]
    fn the_format_of_this_kernel_is_read() {
        // SAFETY: it takes nothing and cannot fail.
        if unsafe { libc::geteuid() } != 0 {
            return;
        }
        let Ok(tracefs) = TraceFs::open() else {
            return eprintln!("skipped: no tracefs");
        };
        assert!(tracefs.id("sock", "inet_sock_set_state").unwrap() > 0);
        let format = tracefs.format("sock", "inet_sock_set_state").unwrap();
        assert_eq!(format.field("skaddr"), Some(at(8, 8)));
        assert_eq!(format.field("saddr_v6").unwrap().size, 16);
        assert!(tracefs.id("sock", "no_such_tracepoint").is_err());
    }

    /// As above. Nobody else sees the mount, and it needs no place.
    #[test]
    fn tracefs_is_found_where_it_is_not_mounted() {
        let Ok(folder) = mount() else {
            return eprintln!("skipped: tracefs cannot be mounted here");
        };
        assert!(TraceFs(folder).id("sock", "inet_sock_set_state").unwrap() > 0);
    }

    proptest! {
        #[test]
        fn hostile_formats_are_read_or_passed_over(bytes in vec(any::<u8>(), 0..512)) {
            let text = String::from_utf8_lossy(&bytes);
            prop_assert!(Format::parse(&text).0.len() <= text.lines().count());
        }

        #[test]
        fn hostile_lines_give_what_they_say_or_nothing(
            line in "(\t| )?field:(__u8 |const void ?\\*? ?)?[a-z_;:]{0,8}(\\[[0-9]{0,3}\\]?)?;?\toffset:[0-9-]{0,6};?\tsize:[0-9]{0,6};",
        ) {
            if let Some((name, field)) = parse_field(&line) {
                prop_assert!(line.contains(&name) && !name.contains(['[', ' ', ';']));
                prop_assert!(line.contains("offset:") && line.contains("size:"));
                let says = |key: &str, value: u16| {
                    line.split(key).skip(1).any(|rest| {
                        rest.split(|c: char| !c.is_ascii_digit()).next().is_some_and(|text| text.parse() == Ok(value))
                    })
                };
                prop_assert!(says("offset:", field.offset) && says("size:", field.size));
            }
        }
    }
}
