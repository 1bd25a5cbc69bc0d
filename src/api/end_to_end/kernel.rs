//! The kernel's side: a socket, and the records of `bpf/tcp_event.h`. The tests of tcp_trace include this file too, so it stands
//! by itself.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Where probes can be attached.
pub struct Kernel {
    path: PathBuf,
    listener: UnixListener,
}

impl Kernel {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("tcpevent-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        let listener = UnixListener::bind(&path).unwrap();
        // Whoever the program runs as.
        fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).unwrap();
        Self { path, listener }
    }

    /// To be named as the file of types.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the next probe that was attached will read.
    pub fn reports(&self) -> Reports {
        Reports(self.listener.accept().unwrap().0)
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Writes records. Dropping it is the end of the probe.
pub struct Reports(UnixStream);

impl Reports {
    /// All at once.
    pub fn write(&mut self, records: &[Vec<u8>]) {
        self.try_write(records).unwrap();
    }

    pub fn try_write(&mut self, records: &[Vec<u8>]) -> io::Result<()> {
        let with_length =
            |record: &Vec<u8>| [&u16::try_from(record.len()).unwrap().to_ne_bytes(), record.as_slice()].concat();
        self.0.write_all(&records.iter().flat_map(with_length).collect::<Vec<_>>())
    }
}

/// `struct tcp_detailed_record`, as far as the tests care.
#[derive(Clone, Debug)]
pub struct Change {
    /// Its time, and the socket's cookie.
    pub number: u64,
    pub old_state: u8,
    pub new_state: u8,
    /// How the owner was found: `enum tcp_origin`.
    pub origin: u8,
    /// Some process still holds the socket.
    pub held: bool,
    pub inode: u64,
    pub pid: u32,
    pub uid: u32,
    pub remote_port: u16,
    /// Why the kernel has ended it.
    pub error: i32,
    /// The program has ended it.
    pub given_up: bool,
}

/// States of an endpoint (include/net/tcp_states.h).
const ESTABLISHED: u8 = 1;
const SYN_SENT: u8 = 2;
const CLOSE: u8 = 7;
const LAST_ACK: u8 = 9;

/// `TCP_ORIGIN_CONNECT`, `TCP_ORIGIN_ACCEPT`
pub const CONNECT: u8 = 1;
pub const ACCEPT: u8 = 2;

impl Change {
    /// A connection of process 1 has ended.
    pub fn close(number: u64) -> Self {
        Self {
            number,
            old_state: LAST_ACK,
            new_state: CLOSE,
            origin: CONNECT,
            held: false,
            inode: 0,
            pid: 1,
            uid: 0,
            remote_port: 443,
            error: 0,
            given_up: false,
        }
    }

    /// One has been established.
    pub fn established(number: u64) -> Self {
        Self { old_state: SYN_SENT, new_state: ESTABLISHED, ..Self::close(number) }
    }

    /// An attempt of process 1 has failed.
    pub fn failed(number: u64, error: i32) -> Self {
        Self { old_state: SYN_SENT, error, ..Self::close(number) }
    }

    pub fn record(&self) -> Vec<u8> {
        const LENGTH: usize = 216;
        const BIRTH_NS: u64 = 1;
        const CONNECTED: u8 = 1;
        const HELD: u8 = 0x80;
        const BEING_CLOSED: u8 = 2;

        let mut record = vec![0; LENGTH];
        let mut put = |at: usize, bytes: &[u8]| record[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.number.to_ne_bytes());
        put(8, &BIRTH_NS.to_ne_bytes());
        put(32, &self.inode.to_ne_bytes());
        put(48, &self.pid.to_ne_bytes());
        put(52, &self.uid.to_ne_bytes());
        put(56, &2u16.to_ne_bytes());
        put(58, &40_000u16.to_ne_bytes());
        put(60, &self.remote_port.to_ne_bytes());
        put(62, &[self.origin | if self.held { HELD } else { 0 }, self.old_state]);
        put(64, &[127, 0, 0, 1]);
        put(80, &[192, 0, 2, 1]);
        put(96, b"synthetic");
        put(120, &self.number.to_ne_bytes());
        put(140, &self.error.to_ne_bytes());
        put(144, &[self.new_state, CONNECTED, if self.given_up { BEING_CLOSED } else { 0 }]);
        record
    }
}

/// `struct tcp_let_go`: a process has let go of the socket of an earlier close.
pub struct LetGo {
    /// That close's number.
    pub of: u64,
    pub pid: u32,
}

impl LetGo {
    pub fn record(&self) -> Vec<u8> {
        const BY_PROCESS: u8 = 1;
        let comm = *b"let-go\0\0\0\0\0\0\0\0\0\0";
        let parts: [&[u8]; 6] =
            [&self.of.to_ne_bytes(), &comm, &self.pid.to_ne_bytes(), &7u32.to_ne_bytes(), &[BY_PROCESS], &[0; 7]];
        parts.concat()
    }
}
