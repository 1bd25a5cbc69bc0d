//! Sizes and offsets of the structures that consumers share, in Rust, C and C++, and the headers as C and C++ programs
//! include them.

use std::fs;
use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tcpEvent::internals::classic::abi;

/// The structures of all headers.
mod types {
    pub use tcpEvent::internals::classic::abi::*;
    pub use tcpEvent::internals::handles::*;
}

struct Structure {
    name: &'static str,
    size: usize,
    fields: &'static [Field],
    /// Its layout in Rust.
    in_rust: String,
}

struct Field {
    name: &'static str,
    offset: usize,
    size: usize,
}

/// The line by which Rust and C programs describe a structure.
fn head(name: &str, size: usize) -> String {
    format!("{name}: {size} bytes\n")
}

fn row(name: &str, offset: usize, size: usize) -> String {
    format!("{name}: {size} at {offset}\n")
}

impl Structure {
    /// The layout that every compiler must produce.
    fn expected(&self) -> String {
        head(self.name, self.size) + &self.expected_rows()
    }

    fn expected_rows(&self) -> String {
        self.fields.iter().map(|field| row(field.name, field.offset, field.size)).collect()
    }
}

/// One table for all compilers: each field's offset and type. rustc checks that the type is the field's own.
macro_rules! structure {
    ($name:ident, $size:literal: $($offset:literal $field:ident: $type:ty),+ $(,)?) => {{
        $(const _: fn(&types::$name) -> $type = |structure| structure.$field;)+
        Structure {
            name: stringify!($name),
            size: $size,
            fields: &[$(Field { name: stringify!($field), offset: $offset, size: size_of::<$type>() }),+],
            in_rust: [
                head(stringify!($name), size_of::<types::$name>()),
                $(row(stringify!($field), offset_of!(types::$name, $field), size_of::<$type>())),+
            ]
            .concat(),
        }
    }};
}

fn tcp_event_t() -> Structure {
    structure! { tcp_event_t, 430:
        0 EventTime: u64,
        8 pid: u32,
        12 UserId: u32,
        16 rx_b: u64,
        24 tx_b: u64,
        32 tcpi_segs_out: u32,
        36 tcpi_segs_in: u32,
        40 family: u16,
        42 SPT: u16,
        44 DPT: u16,
        46 task: [std::ffi::c_char; 128],
        174 SADDR: [std::ffi::c_char; 128],
        302 DADDR: [std::ffi::c_char; 128],
    }
}

fn event_t() -> Structure {
    structure! { event_t, 222:
        0 EventTime: u64,
        8 ts_us: u64,
        16 pid: u32,
        20 UserId: u32,
        24 saddr: [u8; 16],
        40 daddr: [u8; 16],
        56 rx_b: u64,
        64 tx_b: u64,
        72 tcpi_segs_out: u32,
        76 tcpi_segs_in: u32,
        80 span_us: u64,
        88 family: u16,
        90 SPT: u16,
        92 DPT: u16,
        94 task: [std::ffi::c_char; 128],
    }
}

/// Without its bit fields, which have no offset in C: see [`BIT_FIELDS`].
fn anu_tcp_info() -> Structure {
    structure! { anu_tcp_info, 232:
        0 tcpi_state: u8,
        1 tcpi_ca_state: u8,
        2 tcpi_retransmits: u8,
        3 tcpi_probes: u8,
        4 tcpi_backoff: u8,
        5 tcpi_options: u8,
        8 tcpi_rto: u32,
        12 tcpi_ato: u32,
        16 tcpi_snd_mss: u32,
        20 tcpi_rcv_mss: u32,
        24 tcpi_unacked: u32,
        28 tcpi_sacked: u32,
        32 tcpi_lost: u32,
        36 tcpi_retrans: u32,
        40 tcpi_fackets: u32,
        44 tcpi_last_data_sent: u32,
        48 tcpi_last_ack_sent: u32,
        52 tcpi_last_data_recv: u32,
        56 tcpi_last_ack_recv: u32,
        60 tcpi_pmtu: u32,
        64 tcpi_rcv_ssthresh: u32,
        68 tcpi_rtt: u32,
        72 tcpi_rttvar: u32,
        76 tcpi_snd_ssthresh: u32,
        80 tcpi_snd_cwnd: u32,
        84 tcpi_advmss: u32,
        88 tcpi_reordering: u32,
        92 tcpi_rcv_rtt: u32,
        96 tcpi_rcv_space: u32,
        100 tcpi_total_retrans: u32,
        104 tcpi_pacing_rate: u64,
        112 tcpi_max_pacing_rate: u64,
        120 tcpi_bytes_acked: u64,
        128 tcpi_bytes_received: u64,
        136 tcpi_segs_out: u32,
        140 tcpi_segs_in: u32,
        144 tcpi_notsent_bytes: u32,
        148 tcpi_min_rtt: u32,
        152 tcpi_data_segs_in: u32,
        156 tcpi_data_segs_out: u32,
        160 tcpi_delivery_rate: u64,
        168 tcpi_busy_time: u64,
        176 tcpi_rwnd_limited: u64,
        184 tcpi_sndbuf_limited: u64,
        192 tcpi_delivered: u32,
        196 tcpi_delivered_ce: u32,
        200 tcpi_bytes_sent: u64,
        208 tcpi_bytes_retrans: u64,
        216 tcpi_dsack_dups: u32,
        220 tcpi_reord_seen: u32,
        224 tcpi_rcv_ooopack: u32,
        228 tcpi_snd_wnd: u32,
    }
}

/// Name, byte and bits of each bit field of anu_tcp_info.
const BIT_FIELDS: [(&str, usize, u8); 4] = [
    ("tcpi_snd_wscale", 6, 0x0f),
    ("tcpi_rcv_wscale", 6, 0xf0),
    ("tcpi_delivery_rate_app_limited", 7, 0x01),
    ("tcpi_fastopen_client_fail", 7, 0x06),
];

fn tcpevent_options() -> Structure {
    structure! { tcpevent_options, 64:
        0 size: usize,
        8 events: u32,
        12 probe: u32,
        16 queue_slots: u32,
        20 snapshot_interval_ms: u32,
        24 filter: *const std::ffi::c_char,
        32 btf_path: *const std::ffi::c_char,
        40 log: types::tcpevent_log,
        48 log_context: *mut std::ffi::c_void,
        56 log_level: std::ffi::c_int,
        60 reserved: std::ffi::c_int,
    }
}

fn tcpevent_event() -> Structure {
    structure! { tcpevent_event, 248:
        0 size: u32,
        4 kind: u8,
        5 old_state: u8,
        6 new_state: u8,
        7 direction: u8,
        8 time_ns: u64,
        16 monotonic_ns: u64,
        24 cookie: u64,
        32 cgroup: u64,
        40 inode: u64,
        48 netns: u32,
        52 pid: u32,
        56 uid: u32,
        60 known: u32,
        64 flags: u32,
        68 error: i32,
        72 family: u16,
        74 local_port: u16,
        76 remote_port: u16,
        78 owner_by: u8,
        79 ending: u8,
        80 local_addr: [u8; 16],
        96 remote_addr: [u8; 16],
        112 comm: [std::ffi::c_char; 16],
        128 age_ns: u64,
        136 establish_ns: u64,
        144 payload_received: u64,
        152 payload_sent: u64,
        160 payload_acked: u64,
        168 bytes_received: u64,
        176 bytes_acked: u64,
        184 bytes_sent: u64,
        192 bytes_retransmitted: u64,
        200 segs_retransmitted: u32,
        204 segs_out: u32,
        208 segs_in: u32,
        212 data_segs_out: u32,
        216 data_segs_in: u32,
        220 srtt_us: u32,
        224 min_rtt_us: u32,
        228 reserved2: u32,
        232 accept_queue: u32,
        236 accept_queue_limit: u32,
        240 dropped: u32,
        244 newly_dropped: u32,
    }
}

fn tcpevent_statistics() -> Structure {
    structure! { tcpevent_statistics, 184:
        0 size: usize,
        8 probe: u32,
        12 queue_slots: u32,
        16 queued: u64,
        24 delivered: u64,
        32 states: u64,
        40 closes: u64,
        48 snapshots: u64,
        56 sweeps: u64,
        64 shed_states: u64,
        72 shed_closes: u64,
        80 shed_snapshots: u64,
        88 lost_records: u64,
        96 lost_owners: u64,
        104 skipped_runs: u64,
        112 recovered: u64,
        120 undecoded: u64,
        128 unowned: u64,
        136 tracked: u64,
        144 tracked_most: u64,
        152 retries: u64,
        160 shed_retries: u64,
        168 unsent: u64,
        176 shed_unsent: u64,
    }
}

fn structures() -> [Structure; 3] {
    [tcp_event_t(), event_t(), anu_tcp_info()]
}

/// The structures of tcpevent.h.
fn new_structures() -> [Structure; 3] {
    [tcpevent_options(), tcpevent_event(), tcpevent_statistics()]
}

// ---- The compilers

#[derive(Clone, Copy)]
struct Compiler {
    command: &'static str,
    standard: &'static str,
    /// The suffix by which the compiler recognises the language.
    suffix: &'static str,
}

const C: Compiler = Compiler { command: "cc", standard: "-std=c11", suffix: "c" };
const CXX: Compiler = Compiler { command: "c++", standard: "-std=c++17", suffix: "cc" };
/// The build needs clang for the BPF program, so it is installed.
const CLANG: Compiler = Compiler { command: "clang", ..C };
const CLANG_CXX: Compiler = Compiler { command: "clang++", ..CXX };
const ALL: [Compiler; 4] = [C, CXX, CLANG, CLANG_CXX];

impl Compiler {
    /// A file of this text, and the command that compiles it with the strictest warnings.
    fn prepare(self, name: &str, text: &str) -> Command {
        let source = scratch().join(format!("{name}-{}.{}", self.command, self.suffix));
        fs::write(&source, text).unwrap();
        let mut command = Command::new(self.command);
        command.args([self.standard, "-Wall", "-Wextra", "-Werror", "-pedantic", "-I", "include"]);
        command.current_dir(env!("CARGO_MANIFEST_DIR")).arg(source);
        command
    }

    /// Fails if it does not compile the text.
    fn check(self, name: &str, text: &str) {
        let output = run(self.prepare(name, text).arg("-fsyntax-only"));
        let says = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{} does not take\n{text}\n{says}", self.command);
    }

    /// Compiles the text, runs the program, and returns what it prints.
    fn output_of(self, name: &str, text: &str, options: &[String]) -> String {
        let program = scratch().join(format!("{name}-{}", self.command));
        let output = run(self.prepare(name, text).arg("-o").arg(&program).args(options));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let output = run(&mut Command::new(program));
        assert!(output.status.success(), "{name} of {}: {output:?}", self.command);
        String::from_utf8(output.stdout).unwrap()
    }
}

fn scratch() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("abi");
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}: `.ci/setup test` installs what is missing"))
}

// ---- Sizes and offsets

fn program(header: &str, definitions: &str, body: &str) -> String {
    format!(
        "#include <stddef.h>\n#include <stdio.h>\n#include <string.h>\n#include <{header}>\n\
         {definitions}int main(void)\n{{\n{body}return 0;\n}}\n"
    )
}

/// C that prints [`Structure::expected`].
fn print_structure(structure: &Structure) -> String {
    let name = structure.name;
    format!("printf(\"{name}: %zu bytes\\n\", sizeof(struct {name}));\n") + &print_rows(structure, name)
}

/// C that prints [`Structure::expected_rows`] of the structure with this name there.
fn print_rows(structure: &Structure, name_there: &str) -> String {
    let print = |Field { name, .. }: &Field| {
        let size = format!("sizeof(((struct {name_there} *)0)->{name})");
        format!("printf(\"{name}: %zu at %zu\\n\", {size}, offsetof(struct {name_there}, {name}));\n")
    };
    structure.fields.iter().map(print).collect()
}

/// A program that fills the bit fields of a structure one by one, and prints the bytes that are then not 0.
fn bit_fields_program(header: &str, structure: &str) -> String {
    let definitions = format!(
        "\
static struct {structure} info;
static void show(const char *field)
{{
    unsigned char bytes[sizeof info];
    memcpy(bytes, &info, sizeof info);
    for (size_t i = 0; i < sizeof info; i++)
        if (bytes[i] != 0)
            printf(\"%s: bits %#04x of byte %zu\\n\", field, (unsigned)bytes[i], i);
    memset(&info, 0, sizeof info);
}}
"
    );
    let fill = BIT_FIELDS.map(|(name, _, bits)| {
        let all_ones = (1u32 << bits.count_ones()) - 1;
        format!("info.{name} = {all_ones};\nshow(\"{name}\");\n")
    });
    program(header, &definitions, &fill.concat())
}

fn expected_bit_fields() -> String {
    BIT_FIELDS.map(|(name, byte, bits)| format!("{name}: bits {bits:#04x} of byte {byte}\n")).concat()
}

#[test]
fn rust_has_every_field_at_its_offset() {
    for structure in structures().into_iter().chain(new_structures()) {
        assert_eq!(structure.in_rust, structure.expected());
    }
    assert_eq!(offset_of!(abi::anu_tcp_info, tcpi_snd_wscale_rcv_wscale), 6);
    assert_eq!(offset_of!(abi::anu_tcp_info, tcpi_delivery_rate_app_limited_fastopen_client_fail), 7);
}

#[test]
fn c_and_cxx_have_every_field_at_its_offset() {
    for compiler in ALL {
        for structure in structures() {
            let program = program("event.h", "", &print_structure(&structure));
            let printed = compiler.output_of(structure.name, &program, &[]);
            assert_eq!(printed, structure.expected(), "{}", compiler.command);
        }
    }
}

#[test]
fn c_and_cxx_have_every_field_of_the_api_at_its_offset() {
    for compiler in ALL {
        for structure in new_structures() {
            let program = program("tcpevent.h", "", &print_structure(&structure));
            let printed = compiler.output_of(structure.name, &program, &[]);
            assert_eq!(printed, structure.expected(), "{}", compiler.command);
        }
    }
}

#[test]
fn the_structures_of_the_api_have_no_holes() {
    for structure in new_structures() {
        let mut end = 0;
        for field in structure.fields {
            assert_eq!(field.offset, end, "{} of {}", field.name, structure.name);
            end += field.size;
        }
        assert_eq!(end, structure.size, "{}", structure.name);
    }
}

#[test]
fn c_and_cxx_have_the_bit_fields_at_their_bits() {
    for compiler in ALL {
        let printed = compiler.output_of("bit_fields", &bit_fields_program("event.h", "anu_tcp_info"), &[]);
        assert_eq!(printed, expected_bit_fields(), "{}", compiler.command);
    }
}

#[test]
fn anu_tcp_info_is_the_beginning_of_the_kernels_tcp_info() {
    // The kernel's may grow at its end, so its size is not compared.
    let rows = program("linux/tcp.h", "", &print_rows(&anu_tcp_info(), "tcp_info"));
    assert_eq!(C.output_of("kernel", &rows, &[]), anu_tcp_info().expected_rows());
    let bit_fields = bit_fields_program("linux/tcp.h", "tcp_info");
    assert_eq!(C.output_of("kernel_bit_fields", &bit_fields, &[]), expected_bit_fields());
}

// ---- The headers

const HEADERS: [&str; 3] = ["common.h", "event.h", "tcpevent.h"];

#[test]
fn each_header_compiles_twice_and_after_each_other() {
    for compiler in ALL {
        for first in HEADERS {
            for second in HEADERS {
                compiler.check("headers", &format!("#include \"{first}\"\n#include \"{second}\"\n"));
            }
        }
    }
}

#[test]
fn each_header_compiles_with_the_systems_tcp_headers() {
    for compiler in ALL {
        for header in HEADERS {
            if header == "tcpevent.h" {
                // It shares no names with them.
                compiler.check("before", &format!("{USUAL_NAMES}#include <tcpevent.h>\n#include <netinet/tcp.h>\n"));
            }
            // <netinet/tcp.h> comes first: it redefines existing names. <linux/tcp.h> has other names.
            for includes in [["netinet/tcp.h", header], ["linux/tcp.h", header], [header, "linux/tcp.h"]] {
                let text = includes.map(|header| format!("#include <{header}>\n")).concat();
                compiler.check("strict", &text);
                compiler.check("usual", &format!("{USUAL_NAMES}{text}"));
            }
        }
    }
}

/// What compilers define unless they are strict (-std=c11): without it <netinet/tcp.h> has no states.
const USUAL_NAMES: &str = "#define _DEFAULT_SOURCE 1\n";

#[test]
fn the_states_have_the_kernels_numbers_with_and_without_the_systems_header() {
    const STATES: [&str; 11] = [
        "TCP_ESTABLISHED",
        "TCP_SYN_SENT",
        "TCP_SYN_RECV",
        "TCP_FIN_WAIT1",
        "TCP_FIN_WAIT2",
        "TCP_TIME_WAIT",
        "TCP_CLOSE",
        "TCP_CLOSE_WAIT",
        "TCP_LAST_ACK",
        "TCP_LISTEN",
        "TCP_CLOSING",
    ];
    let body = STATES.map(|state| format!("printf(\"{state} %d\\n\", {state});\n")).concat();
    let expected: Vec<String> = STATES.iter().zip(1..).map(|(state, number)| format!("{state} {number}")).collect();
    for compiler in [C, CXX] {
        for (name, before) in [("states", ""), ("system_states", "#include <netinet/tcp.h>\n")] {
            let text = format!("{USUAL_NAMES}{before}{}", program("event.h", "", &body));
            let printed = compiler.output_of(name, &text, &[]);
            assert_eq!(printed.lines().collect::<Vec<_>>(), expected, "{} after {before:?}", compiler.command);
        }
    }
}

#[test]
fn cxx_programs_link_with_the_functions_by_their_c_names() {
    let library = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/release");
    assert!(library.join("libtcpEvent.so").exists(), "there is no library: run `cargo build --release` first");
    let text = "\
#include <event.h>
void (*add_probe)(const char *) = AddProbe;
int (*set_up)(const char *) = setupBPF;
unsigned (*status)() = getStatus;
tcp_event_t (*dequeue)() = DequeuePerfEvent;
void (*clean_up)() = cleanup;
void (*print_array)(const char *) = printCharArray;
int main()
{
    print_array(\"from C++\");
    clean_up();
    return static_cast<int>(status());
}
";
    let library = library.display();
    let options = [format!("-L{library}"), format!("-Wl,-rpath,{library}"), "-ltcpEvent".to_owned()];
    assert_eq!(CXX.output_of("linkage", text, &options), "Array: from C++\n");
}

#[test]
fn cxx_programs_link_with_the_api_by_its_c_names() {
    let library = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/release");
    assert!(library.join("libtcpEvent.so").exists(), "there is no library: run `cargo build --release` first");
    let text = "\
#include <tcpevent.h>
#include <cstdio>
int (*open_handle)(const tcpevent_options *, tcpevent_watch **) = tcpevent_open;
int (*close_handle)(tcpevent_watch *) = tcpevent_close;
int (*descriptor)(tcpevent_watch *) = tcpevent_fd;
int (*read_events)(tcpevent_watch *, tcpevent_event *, size_t, size_t, int) = tcpevent_read;
int (*wake_reader)(tcpevent_watch *) = tcpevent_wake;
int (*statistics)(tcpevent_watch *, tcpevent_statistics *) = tcpevent_get_statistics;
int (*classic_statistics)(tcpevent_statistics *) = tcpevent_classic_statistics;
const char *(*last_error)() = tcpevent_last_error;
const char *(*version)() = tcpevent_version;
const char *(*state_name)(int) = tcpevent_state_name;
const char *(*owner_by_name)(int) = tcpevent_owner_by_name;
const char *(*ending_name)(int) = tcpevent_ending_name;
int (*format_address)(int, const uint8_t *, char *, size_t) = tcpevent_format_address;
int main()
{
    std::printf(\"%s %s %s %d\\n\", state_name(10), owner_by_name(1), ending_name(4), wake_reader(nullptr));
}
";
    let library = library.display();
    let options = [format!("-L{library}"), format!("-Wl,-rpath,{library}"), "-ltcpEvent".to_owned()];
    assert_eq!(CXX.output_of("api_linkage", text, &options), "LISTEN connect reset -9\n");
}

// ---- Programs of today with libraries to come

/// A possible later library: each structure of `tcpevent.h` has one more field. Built from a copy of the sources.
fn later_library(folder: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources = folder.join("sources");
    fs::create_dir_all(&sources).unwrap();
    let parts = ["Cargo.toml", "Cargo.lock", "build.rs", "src", "bpf", "benches"].map(|part| root.join(part));
    let copied = Command::new("cp").arg("-r").args(parts).arg(&sources).status().unwrap();
    assert!(copied.success());
    let change = |file: &str, changes: &[(&str, &str)]| {
        let path = sources.join(file);
        let mut text = fs::read_to_string(&path).unwrap();
        for (from, to) in changes {
            assert_eq!(text.matches(from).count(), 1, "{file}: {from:?}");
            text = text.replace(from, to);
        }
        fs::write(path, text).unwrap();
    };
    // Another name, so that it reuses the built dependencies and does not replace today's library.
    let of_today = concat!("name = \"tcpevent\"\nversion = \"", env!("CARGO_PKG_VERSION"), '"');
    let names = [(of_today, "name = \"tcpevent-later\"\nversion = \"9.9.9\"")];
    change("Cargo.lock", &names);
    change("Cargo.toml", &[names[0], ("name = \"tcpEvent\"", "name = \"tcpEventLater\"")]);
    change(
        "src/api/handles/types.rs",
        &[
            ("    pub reserved: c_int,\n", "    pub reserved: c_int,\n    /// Later.\n    pub later: u64,\n"),
            ("    pub newly_dropped: u32,\n}", "    pub newly_dropped: u32,\n    /// Later.\n    pub later: u64,\n}"),
            (
                "            newly_dropped: backlog.newly_dropped,\n",
                "            newly_dropped: backlog.newly_dropped,\n            later: u64::MAX,\n",
            ),
            ("    pub shed_unsent: u64,\n", "    pub shed_unsent: u64,\n    /// Later.\n    pub later: u64,\n"),
            (
                "            shed_unsent: counters.shed.unsent,\n",
                "            shed_unsent: counters.shed.unsent,\n            later: 1,\n",
            ),
        ],
    );
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked", "--lib", "--profile", "tests"])
        .arg("--target-dir")
        .arg(root.join("target"))
        .current_dir(&sources)
        .status()
        .unwrap();
    assert!(built.success());
    fs::copy(root.join("target/tests/libtcpEventLater.so"), folder.join("libtcpEvent.so")).unwrap();
}

#[test]
fn a_program_of_today_runs_with_a_later_library() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = std::env::temp_dir().join(format!("tcpevent-later-{}", std::process::id()));
    later_library(&folder);
    let program = folder.join("later");
    let compiled = Command::new("cc")
        .args(["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-o"])
        .arg(&program)
        .arg("-I")
        .arg(root.join("include"))
        .arg(root.join("tests/c/later.c"))
        .arg("-L")
        .arg(root.join("target/release"))
        .arg("-ltcpEvent")
        .status()
        .unwrap();
    assert!(compiled.success());
    for (libraries, version) in
        [(root.join("target/release"), concat!(env!("CARGO_PKG_VERSION"), "\n")), (folder.clone(), "9.9.9\n")]
    {
        let output = Command::new(&program).env("LD_LIBRARY_PATH", &libraries).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "with {}: {errors}", libraries.display());
        assert_eq!(String::from_utf8_lossy(&output.stdout), version);
    }
    fs::remove_dir_all(folder).unwrap();
}
