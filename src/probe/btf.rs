//! The kernel's type information, reduced to what the BPF program needs of it. Pure: bytes in, bytes out.
//!
//! To fit the program to the kernel, libbpf looks through the names of all of the kernel's 100,000 types, once for each
//! type that the program has: that was half of the time of a start. Here they are looked through once, and libbpf gets
//! the few that count. (The format: Documentation/bpf/btf.rst.)

/// `struct btf_header`, of which later versions may have more.
const HEADER_LEN: usize = 24;
const MAGIC: u16 = 0xeb9f;
const VERSION: u8 = 1;

/// `struct btf_type`, before what follows it by its kind.
const TYPE_LEN: usize = 12;

mod kind {
    pub const INT: u32 = 1;
    pub const PTR: u32 = 2;
    pub const ARRAY: u32 = 3;
    pub const STRUCT: u32 = 4;
    pub const UNION: u32 = 5;
    pub const ENUM: u32 = 6;
    pub const FWD: u32 = 7;
    pub const TYPEDEF: u32 = 8;
    pub const VOLATILE: u32 = 9;
    pub const CONST: u32 = 10;
    pub const RESTRICT: u32 = 11;
    pub const FUNC: u32 = 12;
    pub const FUNC_PROTO: u32 = 13;
    pub const VAR: u32 = 14;
    pub const DATASEC: u32 = 15;
    pub const FLOAT: u32 = 16;
    pub const DECL_TAG: u32 = 17;
    pub const TYPE_TAG: u32 = 18;
    pub const ENUM64: u32 = 19;
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// One type, with what follows it.
#[derive(Clone, Copy)]
struct Type<'btf>(&'btf [u8]);

impl<'btf> Type<'btf> {
    /// The one that begins here. `None` where it is cut, or of a kind that is not known.
    fn read(bytes: &'btf [u8]) -> Option<Self> {
        let info = word(bytes, 4)?;
        let count = (info & 0xffff) as usize;
        let behind = match info >> 24 & 0x1f {
            kind::INT | kind::VAR | kind::DECL_TAG => 4,
            kind::ARRAY => 12,
            kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => count * 12,
            kind::ENUM | kind::FUNC_PROTO => count * 8,
            kind::PTR | kind::FWD | kind::TYPEDEF..=kind::FUNC | kind::FLOAT | kind::TYPE_TAG => 0,
            _ => return None,
        };
        bytes.get(..TYPE_LEN + behind).map(Self)
    }

    fn kind(self) -> u32 {
        self.word(4) >> 24 & 0x1f
    }

    fn has_flag(self) -> bool {
        self.word(4) >> 31 != 0
    }

    fn is_composite(self) -> bool {
        [kind::STRUCT, kind::UNION].contains(&self.kind())
    }

    fn word(self, at: usize) -> u32 {
        word(self.0, at).unwrap_or(0)
    }

    /// Where in it there are the offsets of names.
    fn name_places(self) -> impl Iterator<Item = usize> {
        let size = match self.kind() {
            kind::STRUCT | kind::UNION | kind::ENUM64 => 12,
            kind::ENUM => 8,
            _ => usize::MAX,
        };
        std::iter::once(0).chain((TYPE_LEN..self.0.len()).step_by(size).filter(move |_| size != usize::MAX))
    }

    /// Where in it there are the IDs of types that it is made of. A pointer is not made of what it points at.
    fn part_places(self) -> impl Iterator<Item = usize> {
        let (first, size) = match self.kind() {
            kind::STRUCT | kind::UNION => (TYPE_LEN + 4, 12),
            kind::ARRAY => (TYPE_LEN, 4),
            kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => (8, usize::MAX),
            _ => (usize::MAX, usize::MAX),
        };
        // An array's third number is its length.
        let end = if self.kind() == kind::ARRAY { TYPE_LEN + 8 } else { self.0.len() };
        (first..end).step_by(size)
    }
}

/// Adds to a list, where there is memory for that: how long it gets is the kernel's choice.
fn push<T>(to: &mut Vec<T>, value: T) -> Option<()> {
    to.try_reserve(1).ok()?;
    to.push(value);
    Some(())
}

/// The same for bytes.
fn extend(to: &mut Vec<u8>, bytes: &[u8]) -> Option<()> {
    to.try_reserve(bytes.len()).ok()?;
    to.extend_from_slice(bytes);
    Some(())
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// A structure.
    Struct,
    /// Another name of a type.
    Typedef,
    /// A function.
    Function,
}

/// A member of a structure or union.
struct Member<'btf> {
    /// With its NUL.
    name: &'btf [u8],
    /// Its type.
    part: u32,
    /// Where it begins.
    bit: u64,
    /// Of a bit-field: its bits. Else 0.
    width: u32,
}

impl Member<'_> {
    fn is_called(&self, name: &str) -> bool {
        // Padding is a bit-field without a name.
        !name.is_empty() && self.name.strip_suffix(&[0]) == Some(name.as_bytes())
    }
}

/// A step on the way from a structure to what is read of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A member by its name, which may be in a part without one.
    Member(&'static str),
    /// An element of an array.
    Element(u32),
}

/// What something is: of an array, what its elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A number, or one of an enumeration.
    Number,
    /// A pointer.
    Pointer,
    /// A structure or union.
    Composite,
    /// Something else.
    Other,
}

/// Where something is in a structure, and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Where it begins.
    pub bit: u64,
    /// All of it: of an array all elements, of a bit-field its own.
    pub bits: u64,
    /// Of an array: of one of its elements.
    pub element_bits: u64,
    /// What it is.
    pub shape: Shape,
    /// A number that has a sign.
    pub signed: bool,
    /// A bit-field.
    pub is_bit_field: bool,
    /// Whether it can be so: what it is in has room for it there, and nothing else in the same place.
    pub is_sound: bool,
}

impl Place {
    /// Whether it is the same thing at the same place, whatever else is there.
    pub fn is_same(&self, other: &Self) -> bool {
        Self { is_sound: other.is_sound, ..*self } == *other
    }
}

/// Typedefs and the like, and arrays, that stand for one another at most; and structures in one another.
const MOST_LEVELS: u32 = 32;

/// Members that are looked at on the way to one thing, at most: structures without a name may hold one another so that there
/// are more ways than anybody can go.
const MOST_MEMBERS: u32 = 1 << 16;

/// Type information as it is.
pub struct Btf<'btf> {
    bytes: &'btf [u8],
    /// Where each type begins, by its ID; 0 is void.
    types: Vec<u32>,
    /// Those that are wanted.
    roots: Vec<u32>,
    strings: &'btf [u8],
}

impl<'btf> Btf<'btf> {
    /// `wanted` are names of structures, unions, enumerations, typedefs and functions. `None` where `bytes` are not type
    /// information as it is known here, of this machine's byte order.
    pub fn read<'name>(bytes: &'btf [u8], wanted: impl IntoIterator<Item = &'name [u8]>) -> Option<Self> {
        let magic = u16::from_ne_bytes(*bytes.first_chunk()?);
        if magic != MAGIC || bytes[2..].first() != Some(&VERSION) {
            return None;
        }
        let field = |at| word(bytes, at).map(|value| value as usize);
        let behind = bytes.get(field(4)?..)?;
        let part = |offset: usize, length: usize| behind.get(offset..offset.checked_add(length)?);
        let (types, strings) = (part(field(8)?, field(12)?)?, part(field(16)?, field(20)?)?);

        // Few types begin with the same two letters as one of the wanted does.
        let mut by_first: [Vec<&[u8]>; 256] = [const { Vec::new() }; 256];
        let mut second = [[0u64; 4]; 256];
        for name in wanted {
            let [first, then] = *name.first_chunk()?;
            by_first[usize::from(first)].push(name);
            second[usize::from(first)][usize::from(then) / 64] |= 1 << (then % 64);
        }
        let is_wanted = |name: &[u8]| {
            name.first_chunk().is_some_and(|[first, then]| {
                second[usize::from(*first)][usize::from(*then) / 64] & 1 << (then % 64) != 0
                    && by_first[usize::from(*first)]
                        .iter()
                        .any(|wanted| name.starts_with(wanted) && name.get(wanted.len()) == Some(&0))
            })
        };
        let mut this = Self { bytes: types, types: vec![0], roots: Vec::new(), strings };
        let mut at = 0;
        while at < types.len() {
            let found = Type::read(&types[at..])?;
            let has_name = matches!(
                found.kind(),
                kind::STRUCT | kind::UNION | kind::ENUM | kind::ENUM64 | kind::TYPEDEF | kind::FUNC
            );
            if has_name && strings.get(found.word(0) as usize..).is_some_and(is_wanted) {
                push(&mut this.roots, u32::try_from(this.types.len()).ok()?)?;
            }
            push(&mut this.types, u32::try_from(at).ok()?)?;
            at += found.0.len();
        }
        Some(this)
    }

    /// The ID of what has one of the names wanted.
    pub fn id(&self, meaning: Meaning, name: &str) -> Option<u32> {
        let kind = match meaning {
            Meaning::Struct => kind::STRUCT,
            Meaning::Typedef => kind::TYPEDEF,
            Meaning::Function => kind::FUNC,
        };
        self.roots.iter().copied().find(|root| {
            self.at(*root).is_some_and(|found| {
                found.kind() == kind
                    && self.name(found.word(0)).and_then(|name| name.strip_suffix(&[0])) == Some(name.as_bytes())
            })
        })
    }

    /// Whether a structure has a member of this name, itself or in a part that has no name.
    pub fn has_member(&self, structure: u32, name: &str) -> bool {
        self.members(structure).any(|member| {
            member.is_called(name) || (member.name == [0] && self.members(member.part).any(|part| part.is_called(name)))
        })
    }

    /// How many parameters a function has, or the one whose pointer a typedef stands for.
    pub fn parameters(&self, id: u32) -> Option<u32> {
        let of = |id: u32, kind| self.at(id).filter(|found| found.kind() == kind).map(|found| found.word(8));
        let prototype = of(id, kind::FUNC).or_else(|| of(of(id, kind::TYPEDEF)?, kind::PTR))?;
        let found = self.at(prototype).filter(|found| found.kind() == kind::FUNC_PROTO)?;
        Some(found.word(4) & 0xffff)
    }

    /// The members of a structure or union.
    fn members(&self, id: u32) -> impl Iterator<Item = Member<'btf>> {
        let found = self.at(id).filter(|found| found.is_composite());
        found.into_iter().flat_map(move |found| {
            let places = found.name_places().skip(1).zip(found.part_places());
            places.filter_map(move |(name, part)| {
                let offset = found.word(part + 4);
                // With the flag, an offset has the width of a bit-field before it.
                let (bit, width) = if found.has_flag() { (offset & 0xff_ffff, offset >> 24) } else { (offset, 0) };
                Some(Member { name: self.name(found.word(name))?, part: found.word(part), bit: bit.into(), width })
            })
        })
    }

    fn at(&self, id: u32) -> Option<Type<'btf>> {
        let at = *self.types.get(id as usize)? as usize;
        Type::read(&self.bytes[at..])
    }

    /// A name, with its NUL.
    fn name(&self, offset: u32) -> Option<&'btf [u8]> {
        let name = self.strings.get(offset as usize..)?;
        let length = name.iter().position(|byte| *byte == 0)?;
        Some(&name[..=length])
    }
}

impl Btf<'_> {
    /// The types of the names wanted, and all that they are made of, as type information. Pointers point at nothing: libbpf
    /// does not follow them. Functions are left out.
    pub fn reduced(&self) -> Option<Vec<u8>> {
        // The new ID of each type; 0 for those that are not taken.
        let mut new_ids = Vec::new();
        new_ids.try_reserve_exact(self.types.len()).ok()?;
        new_ids.resize(self.types.len(), 0u32);
        let mut taken = Vec::new();
        let mut take = |id: u32, taken: &mut Vec<u32>| {
            let new_id = new_ids.get_mut(id as usize)?;
            if id != 0 && *new_id == 0 {
                push(taken, id)?;
                *new_id = u32::try_from(taken.len()).ok()?;
            }
            Some(*new_id)
        };
        for root in &self.roots {
            if self.at(*root)?.kind() != kind::FUNC {
                take(*root, &mut taken)?;
            }
        }

        let (mut types, mut strings) = (Vec::new(), vec![0]);
        let mut next = 0;
        while next < taken.len() {
            let found = self.at(taken[next])?;
            next += 1;
            let start = types.len();
            extend(&mut types, found.0)?;
            let mut set =
                |at: usize, value: u32| types[start + at..start + at + 4].copy_from_slice(&value.to_ne_bytes());
            for at in found.name_places() {
                let name = self.name(found.word(at))?;
                set(at, if name.len() > 1 { u32::try_from(strings.len()).ok()? } else { 0 });
                if name.len() > 1 {
                    extend(&mut strings, name)?;
                }
            }
            for at in found.part_places() {
                set(at, take(found.word(at), &mut taken)?);
            }
            if found.kind() == kind::PTR {
                set(8, 0);
            }
        }

        let mut reduced = Vec::new();
        reduced.try_reserve_exact(HEADER_LEN + types.len() + strings.len()).ok()?;
        reduced.extend(MAGIC.to_ne_bytes());
        reduced.extend([VERSION, 0]);
        for value in [HEADER_LEN, 0, types.len(), types.len(), strings.len()] {
            reduced.extend(u32::try_from(value).ok()?.to_ne_bytes());
        }
        reduced.extend(types);
        reduced.extend(strings);
        Some(reduced)
    }
}

impl Btf<'_> {
    /// The structures and unions that libbpf may take for one of this name: those that have it, also as a version of it
    /// (`NAME___VERSION`).
    pub fn candidates(&self, name: &str) -> impl Iterator<Item = u32> {
        (1..).zip(self.types.iter().skip(1)).filter_map(move |(id, at)| {
            let found = Type::read(&self.bytes[*at as usize..]).filter(|found| found.is_composite())?;
            let rest = self.strings.get(found.word(0) as usize..)?.strip_prefix(name.as_bytes())?;
            (rest.first() == Some(&0) || rest.starts_with(b"___")).then_some(id)
        })
    }

    /// All places to which these steps may lead from a type. `None` where there are too many ways to look at, or no memory.
    pub fn places(&self, root: u32, steps: &[Step]) -> Option<Vec<Place>> {
        let mut walk = Walk { btf: self, places: Vec::new(), members_left: MOST_MEMBERS };
        walk.go(At { id: root, bit: 0, width: 0, is_sound: true, levels_left: MOST_LEVELS }, steps)?;
        Some(walk.places)
    }

    /// What typedefs and the like stand for, if not for void.
    fn meant(&self, mut id: u32) -> Option<(u32, Type<'_>)> {
        for _ in 0..MOST_LEVELS {
            let found = self.at(id)?;
            match found.kind() {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => id = found.word(8),
                _ => return Some((id, found)),
            }
        }
        None
    }

    /// How much a type takes, what it is an array of in the end, and how much one of those takes.
    fn extent(&self, mut id: u32) -> Option<(u64, Type<'_>, u64)> {
        let mut elements = 1u64;
        for _ in 0..MOST_LEVELS {
            let (_, found) = self.meant(id)?;
            let bytes = match found.kind() {
                kind::ARRAY => {
                    elements = elements.saturating_mul(found.word(TYPE_LEN + 8).into());
                    id = found.word(TYPE_LEN);
                    continue;
                }
                kind::PTR => 8,
                kind::INT | kind::ENUM | kind::ENUM64 | kind::FLOAT | kind::STRUCT | kind::UNION => found.word(8),
                _ => return None,
            };
            let mut bits = u64::from(bytes) * 8;
            // Before there was a flag for bit-fields, they had numbers of fewer bits than their bytes have.
            if found.kind() == kind::INT {
                bits = bits.min((found.word(TYPE_LEN) & 0xff).into());
            }
            return Some((bits.saturating_mul(elements), found, bits));
        }
        None
    }

    /// The bit behind a member. Of an array without a length, that is its first one.
    fn end(&self, member: &Member<'_>) -> u64 {
        let bits = match member.width {
            0 => self.extent(member.part).map_or(0, |extent| extent.0),
            width => width.into(),
        };
        member.bit.saturating_add(bits)
    }

    /// Whether a structure's member has no bit in common with another one.
    fn is_alone(&self, structure: u32, number: usize, member: &Member<'_>) -> bool {
        let end = self.end(member);
        self.members(structure).enumerate().all(|(other_number, other)| {
            let other_end = self.end(&other);
            let is_empty = member.bit == end || other.bit == other_end;
            other_number == number || is_empty || other_end <= member.bit || end <= other.bit
        })
    }
}

/// The search for all places that some steps lead to.
struct Walk<'walk> {
    btf: &'walk Btf<'walk>,
    places: Vec<Place>,
    members_left: u32,
}

/// How far it has come.
#[derive(Clone, Copy)]
struct At {
    /// The type.
    id: u32,
    /// Where it is in the type that all began with.
    bit: u64,
    /// Of a bit-field: its bits.
    width: u32,
    is_sound: bool,
    levels_left: u32,
}

impl Walk<'_> {
    fn go(&mut self, at: At, steps: &[Step]) -> Option<()> {
        let levels_left = at.levels_left.checked_sub(1)?;
        let Some((step, behind)) = steps.split_first() else {
            return self.arrive(at);
        };
        let Some((id, found)) = self.btf.meant(at.id) else {
            return Some(());
        };
        match *step {
            Step::Element(number) if found.kind() == kind::ARRAY => {
                let (part, count) = (found.word(TYPE_LEN), found.word(TYPE_LEN + 8));
                // One of no length has as many as there is room for.
                if count == 0 || number < count {
                    let bits = self.btf.extent(part).map_or(0, |extent| extent.0);
                    let bit = at.bit.saturating_add(bits.saturating_mul(number.into()));
                    self.go(At { id: part, bit, levels_left, ..at }, behind)?;
                }
            }
            Step::Member(name) if found.is_composite() => {
                let all = u64::from(found.word(8)) * 8;
                let is_union = found.kind() == kind::UNION;
                for (number, member) in self.btf.members(id).enumerate() {
                    self.members_left = self.members_left.checked_sub(1)?;
                    let steps = match member.name {
                        [0] => steps,
                        _ if member.is_called(name) => behind,
                        _ => continue,
                    };
                    // All others are looked at once more.
                    self.members_left = self.members_left.checked_sub(found.word(4) & 0xffff)?;
                    let has_room = self.btf.end(&member) <= all && (is_union || self.btf.is_alone(id, number, &member));
                    let at = At {
                        id: member.part,
                        bit: at.bit.saturating_add(member.bit),
                        width: member.width,
                        is_sound: at.is_sound && has_room,
                        levels_left,
                    };
                    self.go(at, steps)?;
                }
            }
            // It does not lead on.
            Step::Element(_) | Step::Member(_) => {}
        }
        Some(())
    }

    fn arrive(&mut self, at: At) -> Option<()> {
        let Some((bits, found, element_bits)) = self.btf.extent(at.id) else {
            return Some(());
        };
        let shape = match found.kind() {
            kind::INT | kind::ENUM | kind::ENUM64 => Shape::Number,
            kind::PTR => Shape::Pointer,
            kind::STRUCT | kind::UNION => Shape::Composite,
            _ => Shape::Other,
        };
        let signed = match found.kind() {
            // `BTF_INT_SIGNED`.
            kind::INT => found.word(TYPE_LEN) >> 24 & 1 != 0,
            kind::ENUM | kind::ENUM64 => found.has_flag(),
            _ => false,
        };
        let place = Place {
            bit: at.bit,
            bits: if at.width == 0 { bits } else { at.width.into() },
            element_bits,
            shape,
            signed,
            is_bit_field: at.width != 0,
            is_sound: at.is_sound,
        };
        push(&mut self.places, place)
    }
}

#[cfg(test)]
impl Btf<'_> {
    /// Where a member's `struct btf_member` is, in type information as [`Btf::reduced`] gives it: for forgeries.
    pub fn member_in_reduced(&self, structure: u32, name: &str) -> Option<usize> {
        let start = HEADER_LEN + *self.types.get(structure as usize)? as usize + TYPE_LEN;
        self.members(structure).zip((start..).step_by(12)).find_map(|(member, at)| match member.name {
            [0] => self.member_in_reduced(member.part, name),
            _ => member.is_called(name).then_some(at),
        })
    }

    /// The type of a member.
    pub fn part(&self, structure: u32, name: &str) -> Option<u32> {
        self.members(structure).find_map(|member| match member.name {
            [0] => self.part(member.part, name),
            _ => member.is_called(name).then_some(member.part),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;

    fn kernel() -> Vec<u8> {
        std::fs::read("/sys/kernel/btf/vmlinux").expect("this kernel has type information")
    }

    fn read<'btf>(bytes: &'btf [u8], names: &[&str]) -> Option<Btf<'btf>> {
        Btf::read(bytes, names.iter().map(|name| name.as_bytes()))
    }

    fn reduce(bytes: &[u8], names: &[&str]) -> Option<Vec<u8>> {
        read(bytes, names)?.reduced()
    }

    /// Each member of a structure of this name, and where it is.
    fn members(bytes: &[u8], name: &str) -> Vec<(Vec<u8>, u32)> {
        let btf = read(bytes, &[name]).unwrap();
        let found = btf.at(btf.roots[0]).unwrap();
        (TYPE_LEN..found.0.len())
            .step_by(12)
            .map(|at| (btf.name(found.word(at)).unwrap().to_vec(), found.word(at + 8)))
            .collect()
    }

    #[test]
    fn what_is_wanted_stays_as_it_is() {
        let kernel = kernel();
        let wanted = ["sock", "tcp_sock", "inet_connection_sock", "task_struct", "bpf_func_id"];
        let reduced = reduce(&kernel, &wanted).unwrap();
        assert!(reduced.len() < kernel.len() / 10, "{} of {} bytes", reduced.len(), kernel.len());
        for name in &wanted[..4] {
            assert_eq!(members(&reduced, name), members(&kernel, name), "{name}");
        }
        // By value, so that a path of members can be followed.
        assert_eq!(members(&reduced, "inet_sock"), members(&kernel, "inet_sock"));
    }

    #[test]
    fn libbpf_takes_it() {
        let reduced = reduce(&kernel(), &["sock", "tcp_sock", "socket", "cred", "bpf_func_id"]).unwrap();
        let size = u32::try_from(reduced.len()).unwrap();
        // SAFETY: it reads `size` bytes, and what it gives is freed once.
        unsafe {
            let btf = libbpf_rs::libbpf_sys::btf__new(reduced.as_ptr().cast(), size);
            assert!(!btf.is_null(), "{}", std::io::Error::last_os_error());
            libbpf_rs::libbpf_sys::btf__free(btf);
        }
    }

    #[test]
    fn a_name_that_the_kernel_has_not_is_left_out() {
        let reduced = reduce(&kernel(), &["tcp_sock_of_another_kernel"]).unwrap();
        assert_eq!(reduced.len(), HEADER_LEN + 1);
    }

    #[test]
    fn ids_are_the_kernels() {
        let kernel = kernel();
        let tracepoint = "btf_trace_inet_sock_set_state";
        let btf = read(&kernel, &[tracepoint, "sock", "tcp_set_state"]).unwrap();
        // SAFETY: it reads the bytes that it is given and the name, and what it gives is freed once.
        let by_libbpf = |name: &str, kind| unsafe {
            let name = std::ffi::CString::new(name).unwrap();
            let types = libbpf_rs::libbpf_sys::btf__new(kernel.as_ptr().cast(), u32::try_from(kernel.len()).unwrap());
            let id = libbpf_rs::libbpf_sys::btf__find_by_name_kind(types, name.as_ptr(), kind);
            libbpf_rs::libbpf_sys::btf__free(types);
            u32::try_from(id).ok()
        };
        assert_eq!(btf.id(Meaning::Typedef, tracepoint), by_libbpf(tracepoint, kind::TYPEDEF));
        // The tracepoint's own data, which programs do not get; the socket; two states.
        assert_eq!(btf.parameters(btf.id(Meaning::Typedef, tracepoint).unwrap()), Some(4));
        assert_eq!(btf.parameters(btf.id(Meaning::Function, "tcp_set_state").unwrap()), Some(2));
        assert_eq!(btf.parameters(btf.id(Meaning::Struct, "sock").unwrap()), None);
        assert_eq!(btf.id(Meaning::Struct, "sock"), by_libbpf("sock", kind::STRUCT));
        assert_eq!(btf.id(Meaning::Function, "tcp_set_state"), by_libbpf("tcp_set_state", kind::FUNC));
        assert!(btf.id(Meaning::Struct, "sock").is_some());
        assert_eq!(btf.id(Meaning::Struct, tracepoint), None);
        assert_eq!(btf.id(Meaning::Typedef, "btf_trace_inet_sock"), None);
    }

    #[test]
    fn members_are_found_in_parts_without_a_name_too() {
        let kernel = kernel();
        let btf = read(&kernel, &["task_struct", "sk_buff"]).unwrap();
        let [task, buffer] = ["task_struct", "sk_buff"].map(|name| btf.id(Meaning::Struct, name).unwrap());
        assert!(btf.has_member(task, "group_leader"));
        // include/linux/skbuff.h: in a union with more.
        assert!(btf.has_member(buffer, "sk"));
        for name in ["", "group", "group_leader_", "sock"] {
            assert!(!btf.has_member(task, name), "{name}");
        }
        assert!(!btf.has_member(0, "sk"));
        assert!(!btf.has_member(u32::MAX, "sk"));
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_reduced_or_refused(bytes in vec(any::<u8>(), 0..256)) {
            let _ = reduce(&bytes, &["sock"]);
        }

        /// Real type information, small, with a few bytes set to others, and cut maybe.
        #[test]
        fn hostile_types_are_reduced_or_refused(
            flips in vec((any::<Index>(), any::<u8>()), 0..8),
            cut in prop_oneof![3 => Just(0usize), 1 => 0usize..2000],
        ) {
            static SMALL: std::sync::LazyLock<Vec<u8>> =
                std::sync::LazyLock::new(|| reduce(&kernel(), &["sock", "socket_state", "cred"]).unwrap());
            let mut bytes = SMALL.clone();
            for (at, to) in flips {
                *at.get_mut(&mut bytes) = to;
            }
            bytes.truncate(bytes.len().saturating_sub(cut));
            if let Some(btf) = read(&bytes, &["sock"]) {
                let _ = btf.has_member(btf.id(Meaning::Struct, "sock").unwrap_or(1), "sk_no_such");
                for id in btf.candidates("sock") {
                    let steps = [Step::Member("__sk_common"), Step::Member("skc_daddr")];
                    for place in btf.places(id, &steps).into_iter().flatten() {
                        prop_assert!(!place.is_sound || place.bits <= u64::from(u32::MAX) * 8);
                    }
                }
            }
            if let Some(reduced) = reduce(&bytes, &["sock", "cred"]) {
                prop_assert!(read(&reduced, &["sock"]).is_some());
            }
        }
    }
}
