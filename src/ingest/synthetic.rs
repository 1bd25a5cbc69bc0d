//! Records from a socket in place of a kernel, for tests without root: the path of the socket goes where that of a BTF file
//! does. The library that ships has none of this (feature `synthetic`).
//!
//! Each record comes with its length before it, as two bytes in the order of the host. The end of the stream is the failure
//! of the probe.

use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::source::{Record, Source, add};
use crate::event::counters::Counters;

/// A socket that a test writes records to.
pub struct Synthetic<'run> {
    stream: UnixStream,
    counters: &'run Counters,
    /// What was read, up to the end of a record.
    rest: Vec<u8>,
    failure: Option<io::Error>,
}

impl<'run> Synthetic<'run> {
    /// Connects to it.
    pub fn open(path: &Path, counters: &'run Counters) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, counters, rest: Vec::new(), failure: None })
    }

    fn read_all(&mut self, batch: &mut Vec<Record>) -> io::Result<()> {
        let mut chunk = [0; 4096];
        loop {
            let count = match self.stream.read(&mut chunk) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            self.rest.extend_from_slice(&chunk[..count]);
            let mut taken = 0;
            while let Some((record, behind)) = first_record(&self.rest[taken..]) {
                add(batch, self.counters, || Record::decode(record));
                taken = self.rest.len() - behind.len();
            }
            self.rest.drain(..taken);
        }
    }
}

/// The first record, and what is behind it.
fn first_record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, behind) = bytes.split_first_chunk()?;
    behind.split_at_checked(u16::from_ne_bytes(*length).into())
}

impl Source for Synthetic<'_> {
    const CAN_BE_POLLED: bool = true;
    const IS_IN_ORDER: bool = true;
    const IS_FILTERED: bool = false;

    fn read(&mut self, batch: &mut Vec<Record>) {
        if self.failure.is_none() {
            self.failure = self.read_all(batch).err();
        }
    }

    fn fds(&self) -> [Option<RawFd>; 2] {
        [Some(self.stream.as_raw_fd()), None]
    }

    fn failure(&mut self) -> Option<io::Error> {
        self.failure.take()
    }

    fn detach(&mut self) {
        // The other end may have ended it already.
        let _ = self.stream.shutdown(Shutdown::Read);
    }
}
