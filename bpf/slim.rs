//! Takes out of a BPF object what nobody reads: the source lines of its instructions, with the path of the folder that it was
//! built in, which are for what the verifier writes of a program that it refuses; and the compiler's labels. They take a third of
//! it. What `.BTF.ext` has of functions and relocations stays. The build includes this file.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// elf(5): of the file's header.
const SECTIONS: usize = 40;
const SECTION_LENGTH: usize = 58;
const SECTION_COUNT: usize = 60;
const SECTION_NAMES: usize = 62;
/// Of a section's.
const TYPE: usize = 4;
const OFFSET: usize = 24;
const SIZE: usize = 32;
const INFO: usize = 44;

/// include/linux/btf.h: of `struct btf_header` and, in libbpf's btf_internal.h, of `struct btf_ext_header`.
const HEADER_LENGTH: usize = 4;
const TYPES: usize = 8;
const TYPES_LENGTH: usize = 12;
const STRINGS: usize = 16;
const STRINGS_LENGTH: usize = 20;
const FUNCTIONS: usize = 8;
const LINES: usize = 16;
const LINES_LENGTH: usize = 20;
const RELOCATIONS: usize = 24;

/// An ELF file of 64 bits.
pub struct Object(Vec<u8>);

impl Object {
    /// `None` where it is not what the compiler writes.
    pub fn slim(bytes: Vec<u8>) -> Option<Vec<u8>> {
        let mut object = Self(bytes);
        object.remove_lines()?;
        object.remove_strings()?;
        object.remove_labels()?;
        Some(object.0)
    }

    fn short(&self, at: usize) -> Option<usize> {
        Some(usize::from(u16::from_le_bytes(*self.0.get(at..)?.first_chunk()?)))
    }

    fn word(&self, at: usize) -> Option<usize> {
        usize::try_from(u32::from_le_bytes(*self.0.get(at..)?.first_chunk()?)).ok()
    }

    fn long(&self, at: usize) -> Option<usize> {
        usize::try_from(u64::from_le_bytes(*self.0.get(at..)?.first_chunk()?)).ok()
    }

    fn set_word(&mut self, at: usize, value: usize) -> Option<()> {
        self.0.get_mut(at..at + 4)?.copy_from_slice(&u32::try_from(value).ok()?.to_le_bytes());
        Some(())
    }

    fn set_long(&mut self, at: usize, value: usize) -> Option<()> {
        self.0.get_mut(at..at + 8)?.copy_from_slice(&u64::try_from(value).ok()?.to_le_bytes());
        Some(())
    }

    /// Where the header of a section is.
    fn header(&self, number: usize) -> Option<usize> {
        Some(self.long(SECTIONS)? + number * self.short(SECTION_LENGTH)?)
    }

    /// The number of a section by its name, which ends with NUL.
    fn section(&self, name: &[u8]) -> Option<usize> {
        let names = self.long(self.header(self.short(SECTION_NAMES)?)? + OFFSET)?;
        (0..self.short(SECTION_COUNT)?).find(|number| {
            let at = self.header(*number).and_then(|header| self.word(header));
            at.and_then(|at| self.0.get(names + at..)).is_some_and(|found| found.starts_with(name))
        })
    }

    /// Takes bytes out of a section; a multiple of 8, so that all that follows stays aligned.
    fn cut(&mut self, section: usize, at: usize, length: usize) -> Option<()> {
        for number in 0..self.short(SECTION_COUNT)? {
            let header = self.header(number)?;
            let (offset, size) = (self.long(header + OFFSET)?, self.long(header + SIZE)?);
            if number == section {
                self.set_long(header + SIZE, size.checked_sub(length)?)?;
            } else if offset > at {
                self.set_long(header + OFFSET, offset - length)?;
            }
        }
        let table = self.long(SECTIONS)?;
        if table > at {
            self.set_long(SECTIONS, table - length)?;
        }
        self.0.drain(at..at + length);
        Some(())
    }

    fn remove_lines(&mut self) -> Option<()> {
        let section = self.section(b".BTF.ext\0")?;
        let ext = self.long(self.header(section)? + OFFSET)?;
        let lines = ext + self.word(ext + HEADER_LENGTH)? + self.word(ext + LINES)?;
        let length = self.word(ext + LINES_LENGTH)? & !7;
        let relocations = self.word(ext + RELOCATIONS)?;
        self.set_word(ext + LINES_LENGTH, 0)?;
        self.set_word(ext + RELOCATIONS, relocations.checked_sub(length)?)?;
        self.cut(section, lines, length)
    }

    /// The strings that nothing names any more.
    fn remove_strings(&mut self) -> Option<()> {
        let section = self.section(b".BTF\0")?;
        let btf = self.long(self.header(section)? + OFFSET)?;
        let start = btf + self.word(btf + HEADER_LENGTH)?;
        let (strings, length) = (start + self.word(btf + STRINGS)?, self.word(btf + STRINGS_LENGTH)?);
        let mut places = self.names_in_types(start + self.word(btf + TYPES)?, self.word(btf + TYPES_LENGTH)?)?;
        places.extend(self.names_in_ext()?);
        let kept = self.keep_strings(section, strings, length, &places)?;
        self.set_word(btf + STRINGS_LENGTH, kept)
    }

    /// Keeps those strings of a table that places in the object name. Returns their length.
    fn keep_strings(&mut self, section: usize, strings: usize, length: usize, places: &[usize]) -> Option<usize> {
        let table = self.0.get(strings..strings + length)?;
        let mut wanted = BTreeMap::new();
        for place in places {
            let at = self.word(*place)?;
            let end = at + table.get(at..)?.iter().position(|byte| *byte == 0)?;
            wanted.insert(at, table.get(at..=end)?);
        }
        // The longest first: others may be the ends of those, as the compiler has them.
        let mut by_length: Vec<_> = wanted.into_iter().collect();
        by_length.sort_by_key(|(_, string)| Reverse(string.len()));
        let mut kept = vec![0];
        let mut moved = BTreeMap::new();
        for (at, string) in by_length {
            let found = kept.windows(string.len()).position(|there| there == string);
            moved.insert(at, found.unwrap_or(kept.len()));
            if found.is_none() {
                kept.extend_from_slice(string);
            }
        }
        for place in places {
            let at = self.word(*place)?;
            self.set_word(*place, *moved.get(&at)?)?;
        }
        let removed = length.checked_sub(kept.len())? & !7;
        kept.resize(length - removed, 0);
        self.0.get_mut(strings..strings + kept.len())?.copy_from_slice(&kept);
        self.cut(section, strings + kept.len(), removed)?;
        Some(kept.len())
    }

    /// Symbols of the places that jumps go to, which have found those, and their names.
    fn remove_labels(&mut self) -> Option<()> {
        const SYMBOL: usize = 24;
        const RELOCATION: usize = 16;
        const SHT_REL: usize = 9;
        /// Both a local symbol and one without a type.
        const LOCAL_WITHOUT_TYPE: u8 = 0;

        let section = self.section(b".symtab\0")?;
        let header = self.header(section)?;
        let (symbols, size) = (self.long(header + OFFSET)?, self.long(header + SIZE)?);
        let names = self.section(b".strtab\0")?;
        let strings = self.long(self.header(names)? + OFFSET)?;
        // The second half of a relocation is its type, and which symbol it is for.
        let mut relocations = Vec::new();
        for number in 0..self.short(SECTION_COUNT)? {
            let header = self.header(number)?;
            if self.word(header + TYPE)? == SHT_REL {
                let (at, size) = (self.long(header + OFFSET)?, self.long(header + SIZE)?);
                relocations.extend((at..at + size).step_by(RELOCATION).map(|at| at + 12));
            }
        }
        let used: BTreeSet<_> = relocations.iter().filter_map(|at| self.word(*at)).collect();
        let (mut moved, mut kept) = (BTreeMap::new(), Vec::new());
        for number in 0..size / SYMBOL {
            let at = symbols + number * SYMBOL;
            let is_label = *self.0.get(at + 4)? == LOCAL_WITHOUT_TYPE
                && self.0.get(strings + self.word(at)?..)?.starts_with(b"LBB");
            if used.contains(&number) || !is_label {
                moved.insert(number, kept.len() / SYMBOL);
                kept.extend_from_slice(self.0.get(at..at + SYMBOL)?);
            }
        }
        for at in relocations {
            let number = *moved.get(&self.word(at)?)?;
            self.set_word(at, number)?;
        }
        let removed = size.checked_sub(kept.len())?;
        self.0.get_mut(symbols..symbols + kept.len())?.copy_from_slice(&kept);
        // Where the local ones end. libbpf, which has linked the object, says 0.
        let locals = self.word(header + INFO)?;
        self.set_word(header + INFO, locals.saturating_sub(removed / SYMBOL))?;
        self.cut(section, symbols + kept.len(), removed)?;

        let strings = self.header(names)?;
        let (strings, length) = (self.long(strings + OFFSET)?, self.long(strings + SIZE)?);
        let symbols = self.long(self.header(section)? + OFFSET)?;
        let mut places: Vec<_> = (symbols..symbols + kept.len()).step_by(SYMBOL).collect();
        if self.short(SECTION_NAMES)? == names {
            for number in 0..self.short(SECTION_COUNT)? {
                places.push(self.header(number)?);
            }
        }
        self.keep_strings(names, strings, length, &places)?;
        Some(())
    }

    /// Where types have names, and their parts (include/uapi/linux/btf.h).
    fn names_in_types(&self, start: usize, length: usize) -> Option<Vec<usize>> {
        const HEADER: usize = 12;

        let mut places = Vec::new();
        let mut at = start;
        while at < start + length {
            places.push(at);
            let info = self.word(at + 4)?;
            let (kind, count) = (info >> 24 & 0x1f, info & 0xffff);
            at += HEADER;
            // How long each part is, and whether it begins with a name.
            let (part, parts, has_names) = match kind {
                // INT, VAR, DECL_TAG
                1 | 14 | 17 => (4, 1, false),
                // ARRAY
                3 => (12, 1, false),
                // STRUCT, UNION, ENUM64
                4 | 5 | 19 => (12, count, true),
                // ENUM, FUNC_PROTO
                6 | 13 => (8, count, true),
                // DATASEC
                15 => (12, count, false),
                // PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT, TYPE_TAG
                2 | 7..=12 | 16 | 18 => (0, 0, false),
                _ => return None,
            };
            if has_names {
                places.extend((0..parts).map(|number| at + number * part));
            }
            at += part * parts;
        }
        Some(places)
    }

    /// Where `.BTF.ext` names sections, and the paths of relocations (libbpf's `struct btf_ext_info_sec`, `struct bpf_core_relo`).
    fn names_in_ext(&self) -> Option<Vec<usize>> {
        const PATH: usize = 8;

        let ext = self.long(self.header(self.section(b".BTF.ext\0")?)? + OFFSET)?;
        let mut places = Vec::new();
        for (offset, path) in [(FUNCTIONS, None), (RELOCATIONS, Some(PATH))] {
            let start = ext + self.word(ext + HEADER_LENGTH)? + self.word(ext + offset)?;
            let end = start + self.word(ext + offset + 4)?;
            let record = self.word(start)?;
            let mut at = start + 4;
            while at < end {
                places.push(at);
                let count = self.word(at + 4)?;
                at += 8;
                places.extend(
                    path.into_iter().flat_map(|path| (0..count).map(move |number| at + number * record + path)),
                );
                at += count * record;
            }
        }
        Some(places)
    }
}
