//! The type information in a file that a user names: all of it, or the section `.BTF` of an ELF file.
//!
//! It is read and not mapped: whoever may write to the file could cut it, and whoever looks at a mapping then is killed.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// More than any kernel's takes: some 10 MiB.
const MOST_BYTES: u64 = 256 << 20;

const BTF_MAGIC: [u8; 2] = 0xeb9f_u16.to_ne_bytes();

/// Of ELF files of 64 bits.
const ELF_MAGIC: [u8; 5] = *b"\x7fELF\x02";

// elf(5): where in the file's header, and in a section's, there are numbers that count.
const SECTIONS: u64 = 40;
const SECTION_COUNT: u64 = 60;
const SECTION_NAMES: u64 = 62;
const SECTION_HEADER_LEN: u64 = 64;
const OFFSET: u64 = 24;
const SIZE: u64 = 32;

const NAME: &[u8] = b".BTF\0";

/// The type information of a file, as it is. The error says why there is none.
pub fn read(file: &File) -> Result<Vec<u8>, &'static str> {
    const CUT: &str = "is cut, or not an ELF file of 64 bits of this machine's byte order";

    if bytes::<2>(file, 0) == Some(BTF_MAGIC) {
        let length = file.metadata().map_err(|_| CUT)?.len();
        return part(file, 0, length);
    }
    if bytes(file, 0) != Some(ELF_MAGIC) {
        return Err("is neither type information nor an ELF file of 64 bits");
    }
    let sections = Sections::of(file).ok_or(CUT)?;
    let header =
        (0..sections.count).filter_map(|number| sections.header(number)).find(|header| sections.is_btf(*header));
    let header = header.ok_or("has no section .BTF")?;
    let [offset, length] = [OFFSET, SIZE].map(|field| sections.number(header, field));
    part(file, offset.ok_or(CUT)?, length.ok_or(CUT)?)
}

/// The table of an ELF file's sections.
struct Sections<'file> {
    file: &'file File,
    table: u64,
    count: u64,
    /// Where their names are.
    names: u64,
}

impl<'file> Sections<'file> {
    fn of(file: &'file File) -> Option<Self> {
        let table = bytes(file, SECTIONS).map(u64::from_ne_bytes)?;
        let short = |at: u64| bytes(file, at).map(u16::from_ne_bytes).map(u64::from);
        let (count, of_names) = (short(SECTION_COUNT)?, short(SECTION_NAMES)?);
        let this = Self { file, table, count, names: 0 };
        Some(Self { names: this.number(this.header(of_names)?, OFFSET)?, ..this })
    }

    /// Where the header of a section is.
    fn header(&self, number: u64) -> Option<u64> {
        self.table.checked_add(number * SECTION_HEADER_LEN)
    }

    fn number(&self, header: u64, field: u64) -> Option<u64> {
        bytes(self.file, header.checked_add(field)?).map(u64::from_ne_bytes)
    }

    fn is_btf(&self, header: u64) -> bool {
        let name =
            bytes(self.file, header).map(u32::from_ne_bytes).and_then(|name| self.names.checked_add(name.into()));
        // The name of another section may end with the file.
        name.and_then(|at| bytes::<{ NAME.len() }>(self.file, at)).is_some_and(|name| name == NAME)
    }
}

/// A few bytes. `None` where the file has no such.
fn bytes<const COUNT: usize>(file: &File, at: u64) -> Option<[u8; COUNT]> {
    let mut bytes = [0; COUNT];
    file.read_exact_at(&mut bytes, at).ok()?;
    Some(bytes)
}

fn part(file: &File, at: u64, length: u64) -> Result<Vec<u8>, &'static str> {
    if length > MOST_BYTES {
        return Err("has more type information than a kernel can have");
    }
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let mut part = Vec::new();
    part.try_reserve_exact(length).map_err(|_| "has more type information than there is memory for")?;
    part.resize(length, 0);
    file.read_exact_at(&mut part, at).map_err(|_| "cannot be read to its end")?;
    Ok(part)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;

    fn file(bytes: &[u8]) -> File {
        let name = c"tcpevent-test";
        // SAFETY: a NUL-terminated name; the descriptor is nobody else's.
        let mut file = unsafe {
            use std::os::fd::FromRawFd;
            File::from_raw_fd(libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC))
        };
        file.write_all(bytes).unwrap();
        file
    }

    /// An ELF file with names of sections behind its header, then type information, then the sections' headers.
    fn elf(types: &[u8]) -> Vec<u8> {
        let names = b"\0.strtab\0.BTF\0";
        let mut bytes = vec![0; 64];
        bytes[..ELF_MAGIC.len()].copy_from_slice(&ELF_MAGIC);
        bytes.extend(names);
        let types_at = bytes.len() as u64;
        bytes.extend(types);
        let table = bytes.len() as u64;
        for (name, at, size) in [(0u32, 0, 0), (1, 64, names.len() as u64), (9, types_at, types.len() as u64)] {
            let mut header = [0; 64];
            header[..4].copy_from_slice(&name.to_ne_bytes());
            header[24..32].copy_from_slice(&at.to_ne_bytes());
            header[32..40].copy_from_slice(&size.to_ne_bytes());
            bytes.extend(header);
        }
        bytes[40..48].copy_from_slice(&table.to_ne_bytes());
        bytes[60..62].copy_from_slice(&3u16.to_ne_bytes());
        bytes[62..64].copy_from_slice(&1u16.to_ne_bytes());
        bytes
    }

    #[test]
    fn type_information_is_found_alone_and_in_elf_files() {
        let types = [&BTF_MAGIC[..], b"and the rest"].concat();
        assert_eq!(read(&file(&types)).unwrap(), types);
        assert_eq!(read(&file(&elf(&types))).unwrap(), types);
    }

    #[test]
    fn a_file_of_another_kind_is_refused_and_the_reason_told() {
        let types = BTF_MAGIC;
        let without = elf(&types).into_iter().map(|byte| if byte == b'B' { b'C' } else { byte }).collect();
        let mut large = elf(&types);
        let size_at = large.len() - 64 + 32;
        large[size_at..size_at + 8].copy_from_slice(&u64::MAX.to_ne_bytes());
        let mut cut = elf(&types);
        cut.truncate(64 - 2);
        for (bytes, reason) in [
            (Vec::new(), "is neither"),
            (b"#!/bin/sh".to_vec(), "is neither"),
            (without, "has no section .BTF"),
            (large, "has more type information than a kernel can have"),
            (cut, "is cut"),
        ] {
            let refused = read(&file(&bytes)).unwrap_err();
            assert!(refused.starts_with(reason), "{refused}");
        }
    }

    proptest! {
        #[test]
        fn hostile_files_are_read_or_refused(flips in vec((any::<Index>(), any::<u8>()), 0..6)) {
            let mut bytes = elf(&[BTF_MAGIC[0]; 32]);
            for (at, to) in flips {
                *at.get_mut(&mut bytes) = to;
            }
            if let Ok(types) = read(&file(&bytes)) {
                prop_assert!(types.len() <= bytes.len());
            }
        }
    }
}
