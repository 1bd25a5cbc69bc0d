//! BTF files named by a user: what they say of the kernel is not trusted.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, id};
use std::time::Instant;

use crate::consumer::{Consumer, c_program, has_kprobes, patience, rung_is_tracepoint, turn};
use crate::traffic::{Connection, V4, own_comm};

const KERNEL: &str = "/sys/kernel/btf/vmlinux";

/// A temporary folder, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("tcpevent-btf-{name}-{}", id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Types in the format of the kernel's file (Documentation/bpf/btf.rst), as far as a forger needs it.
struct Types {
    bytes: Vec<u8>,
    /// Offset of each type, by its number.
    places: Vec<usize>,
    strings: usize,
}

impl Types {
    const STRUCT: u32 = 4;
    const UNION: u32 = 5;

    fn of_kernel() -> Self {
        let bytes = fs::read(KERNEL).unwrap();
        let mut this = Self { bytes, places: vec![0], strings: 0 };
        let header = this.word(4) as usize;
        this.strings = header + this.word(16) as usize;
        let mut at = header + this.word(8) as usize;
        let end = at + this.word(12) as usize;
        while at < end {
            this.places.push(at);
            let count = (this.word(at + 4) & 0xffff) as usize;
            at += 12
                + match this.kind(at) {
                    1 | 14 | 17 => 4,
                    3 => 12,
                    4 | 5 | 15 | 19 => 12 * count,
                    6 | 13 => 8 * count,
                    _ => 0,
                };
        }
        this
    }

    fn word(&self, at: usize) -> u32 {
        u32::from_ne_bytes(*self.bytes[at..].first_chunk().unwrap())
    }

    fn kind(&self, at: usize) -> u32 {
        self.word(at + 4) >> 24 & 0x1f
    }

    fn name(&self, at: usize) -> &[u8] {
        let name = &self.bytes[self.strings + self.word(at) as usize..];
        name.split(|byte| *byte == 0).next().unwrap()
    }

    /// Position of a structure member's offset, in bits, and the offset.
    fn member(&self, structure: &str, name: &str) -> (usize, u32) {
        let at = self.places[1..]
            .iter()
            .find(|at| self.kind(**at) == Self::STRUCT && self.name(**at) == structure.as_bytes());
        self.member_of(*at.unwrap(), name).unwrap_or_else(|| panic!("{structure} has no {name}"))
    }

    fn member_of(&self, structure: usize, name: &str) -> Option<(usize, u32)> {
        let count = (self.word(structure + 4) & 0xffff) as usize;
        (0..count).map(|number| structure + 12 + 12 * number).find_map(|member| {
            let bit = self.word(member + 8) & 0xff_ffff;
            let part = self.places[self.word(member + 4) as usize];
            match self.name(member) {
                b"" if [Self::STRUCT, Self::UNION].contains(&self.kind(part)) => {
                    self.member_of(part, name).map(|(at, inner)| (at, bit + inner))
                }
                found => (found == name.as_bytes()).then_some((member + 8, bit)),
            }
        })
    }

    /// Moves a member onto another one of the same structure.
    fn forge(&mut self, structure: &str, name: &str, onto: (&str, &str)) {
        let (at, _) = self.member(structure, name);
        let (_, bit) = self.member(onto.0, onto.1);
        let width = self.word(at) & 0xff00_0000;
        self.bytes[at..at + 4].copy_from_slice(&(width | bit).to_ne_bytes());
    }
}

fn is_left_out() -> bool {
    if rung_is_tracepoint() {
        eprintln!("skipped: the plain tracepoint needs no types");
    } else if !Path::new(KERNEL).exists() {
        eprintln!("skipped: this kernel shows no types, of which a file could be made");
    } else {
        return false;
    }
    true
}

/// The start fails with a single line, which is returned.
fn refusal(mut consumer: Consumer) -> String {
    consumer.tell("setup");
    assert_eq!(consumer.expect("setup"), "setup 1");
    let mut lines = consumer.stderr();
    assert_eq!(lines.len(), 1, "{lines:?}");
    lines.remove(0)
}

/// `struct sock` begins `struct tcp_sock`: a kernel address in place of a byte count, or of a port.
const FORGERIES: [(&str, &str, (&str, &str)); 3] = [
    ("tcp_sock", "bytes_received", ("sock", "sk_socket")),
    ("inet_sock", "inet_sport", ("sock", "sk_socket")),
    ("sock_common", "skc_daddr", ("sock_common", "skc_net")),
];

#[test]
fn a_forged_file_that_shows_kernel_addresses_is_refused() {
    let _turn = turn();
    if is_left_out() {
        return;
    }
    let folder = Folder::new("forged");
    let file = folder.0.join("forged.btf");
    for (structure, member, onto) in FORGERIES {
        let mut types = Types::of_kernel();
        types.forge(structure, member, onto);
        fs::write(&file, types.bytes).unwrap();
        let variables = [("TCPEVENT_BTF", file.to_str().unwrap()), ("TCPEVENT_ON_ERROR", "continue")];
        let mut consumer = Consumer::run(&variables);
        consumer.tell("consume 1");
        let line = refusal(consumer);
        let expected = format!("libtcpEvent: error: cannot watch TCP connections: the BTF file {file:?} has ");
        assert!(line.starts_with(&expected) && line.contains(&format!(".{member} as ")), "{line}");
        assert!(line.ends_with("; name no BTF file: this kernel has type information of its own"), "{line}");
    }
}

/// Even without the kernel's own types, a structure cannot have two members in one place.
#[test]
fn a_forged_file_is_refused_by_a_kernel_that_shows_no_types_where_it_cannot_be_right() {
    let _turn = turn();
    if is_left_out() {
        return;
    }
    if !has_kprobes() {
        eprintln!("skipped: without kprobes a kernel that shows no types has no use for a file");
        return;
    }
    let folder = Folder::new("hidden");
    let file = folder.0.join("forged.btf");
    for (structure, member, onto) in FORGERIES {
        let mut types = Types::of_kernel();
        types.forge(structure, member, onto);
        fs::write(&file, types.bytes).unwrap();
        let line = refusal(without_types(&file));
        assert!(line.contains(&format!(".{member} as ")) && line.contains(", which cannot be; "), "{line}");
        assert!(line.ends_with("; name a BTF file that was made for this very kernel (uname -r)"), "{line}");
    }
    fs::write(&file, Types::of_kernel().bytes).unwrap();
    check_closes(without_types(&file));
}

fn without_types(file: &Path) -> Consumer {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", "mount -t tmpfs none /sys/kernel/btf && exec \"$0\""]);
    command.arg(c_program("consumer")).env("TCPEVENT_NETLINK_INTERVAL", "0").env("TCPEVENT_PROBE", "kprobe");
    command.env("TCPEVENT_BTF", file).env("TCPEVENT_ON_ERROR", "continue");
    Consumer::from(command)
}

fn check_closes(mut consumer: Consumer) {
    consumer.start();
    consumer.tell("consume 1");
    let mut connection = Connection::open(V4(), V4());
    let ports = connection.ports();
    connection.send_up(5000);
    connection.close_client_first();
    let (client, server) = consumer.both_ends(ports);
    assert_eq!([(client.pid, client.task), (server.pid, server.task)], [(); 2].map(|()| (id(), own_comm())));
    assert_eq!((client.tx, server.rx), (5002, 5001));
    assert_eq!(consumer.stderr(), [""; 0]);
}

#[test]
fn a_file_that_is_the_kernels_own_is_taken_alone_and_in_an_elf_file() {
    let _turn = turn();
    if is_left_out() {
        return;
    }
    let folder = Folder::new("own");
    let (alone, object) = (folder.0.join("own.btf"), folder.0.join("own.o"));
    fs::copy(KERNEL, &alone).unwrap();
    let assembly = folder.0.join("own.s");
    fs::write(&assembly, format!(".section .BTF\n.incbin {alone:?}\n")).unwrap();
    assert!(Command::new("cc").arg("-c").arg(&assembly).arg("-o").arg(&object).status().unwrap().success());
    for file in [alone, object] {
        check_closes(Consumer::run(&[("TCPEVENT_BTF", file.to_str().unwrap())]));
    }
}

#[test]
fn a_file_of_something_else_is_refused_in_one_line() {
    let _turn = turn();
    if is_left_out() {
        return;
    }
    let folder = Folder::new("else");
    let cut = folder.0.join("cut.btf");
    fs::write(&cut, &fs::read(KERNEL).unwrap()[..1 << 20]).unwrap();
    for (file, why) in [
        (Path::new("/etc/passwd"), "is neither type information nor an ELF file of 64 bits"),
        (&c_program("consumer"), "has no section .BTF"),
        (&cut, "is damaged, or of another machine"),
    ] {
        let variables = [("TCPEVENT_BTF", file.to_str().unwrap()), ("TCPEVENT_ON_ERROR", "continue")];
        let line = refusal(Consumer::run(&variables));
        assert!(line.contains(&format!(": the BTF file {file:?} {why}; ")), "{line}");
    }
}

/// Opening one blocks until it has a writer.
#[test]
fn a_fifo_as_btf_file_is_an_error_and_does_not_hang() {
    let _turn = turn();
    let folder = Folder::new("fifo");
    let fifo = folder.0.join("kernel.btf");
    let path = CString::new(fifo.as_os_str().as_bytes()).unwrap();
    // SAFETY: a NUL-terminated path.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
    let mut consumer = Consumer::run(&[("TCPEVENT_BTF", fifo.to_str().unwrap())]);
    let began = Instant::now();
    consumer.tell("add");
    assert_eq!(consumer.wait(), Some(1));
    assert!(began.elapsed() < patience() / 2, "it took {:?}", began.elapsed());
    let line =
        format!("libtcpEvent: error: TCPEVENT_BTF={fifo:?} is not valid: it takes the path of a readable BTF file");
    assert_eq!(consumer.stderr(), [line]);
}
