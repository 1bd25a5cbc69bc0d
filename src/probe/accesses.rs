//! What the programs read of the kernel's structures, and whether a file of type information may be right about that.
//!
//! The programs read where such a file says. One that is forged, or another kernel's, would have them take kernel addresses for
//! bytes of a connection. The kernel's own type information says what is right. Without it, a file is held against what the
//! programs expect: a field of the right kind and size, within its structure, and no two fields in one place.

use std::fmt;

use crate::probe::btf::{Btf, Place, Shape, Step};

/// Something that a program reads.
struct Access {
    /// The structure that it begins with.
    of: &'static str,
    steps: &'static [Step],
    /// What the programs take it for.
    shape: Shape,
    /// Of an array: of each element.
    bits: u64,
    /// 1 where it is none.
    elements: u64,
}

/// What the programs' own relocations say (`build.rs`).
const ACCESSES: &[Access] = include!(concat!(env!("OUT_DIR"), "/accesses.rs"));

/// Structures of one name in a file, at most. Some kernels have two or three.
const MOST_CANDIDATES: usize = 64;

/// What the user can do where the kernel has type information.
pub(super) const OWN: &str = "name no BTF file: this kernel has type information of its own";

/// What is wrong with a file.
#[derive(Debug)]
pub(super) struct Fault {
    access: &'static Access,
    why: Why,
}

#[derive(Debug)]
enum Why {
    /// There is no end to what it says.
    Endless,
    /// It says what cannot be.
    Impossible(Place),
    /// The kernel says something else, or does not have that.
    Wrong(Place, Option<Place>),
}

/// Holds all that the programs read by a file's types against the kernel's own, where those are at hand.
///
/// What the file does not have, libbpf does not find either: then it is as with a kernel that does not have it.
pub(super) fn check(file: &Btf<'_>, kernel: Option<&Btf<'_>>) -> Result<(), Fault> {
    for same_structure in ACCESSES.chunk_by(|one, next| one.of == next.of) {
        // There is at least one.
        let of = same_structure[0].of;
        for (number, candidate) in file.candidates(of).enumerate() {
            for access in same_structure {
                if number == MOST_CANDIDATES {
                    return Err(Fault { access, why: Why::Endless });
                }
                access.check(candidate, file, kernel)?;
            }
        }
    }
    Ok(())
}

impl Access {
    fn check(&'static self, candidate: u32, file: &Btf<'_>, kernel: Option<&Btf<'_>>) -> Result<(), Fault> {
        let fault = |why| Fault { access: self, why };
        let places = file.places(candidate, self.steps).ok_or(fault(Why::Endless))?;
        // One of another shape libbpf passes over.
        for says in places.into_iter().filter(|place| place.shape == self.shape) {
            let right = kernel.map(|kernel| {
                let candidates = kernel.candidates(self.of);
                candidates.filter_map(|id| kernel.places(id, self.steps)).flatten()
            });
            match right {
                None if self.may_be(&says) => {}
                None => return Err(fault(Why::Impossible(says))),
                Some(mut places) => {
                    let first = places.next();
                    if !first.is_some_and(|place| place.is_same(&says)) && !places.any(|place| place.is_same(&says)) {
                        return Err(fault(Why::Wrong(says, first)));
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether what a program takes for this can be such a thing.
    fn may_be(&self, place: &Place) -> bool {
        place.is_sound
            && match self.shape {
                // Some have grown, or were bit-fields.
                Shape::Number if self.elements == 1 => place.bits <= self.bits,
                Shape::Number => place.element_bits == self.bits && place.bits >= self.bits * self.elements,
                Shape::Pointer => place.bits == self.bits,
                // Of those each part that is read is an access of its own.
                Shape::Composite | Shape::Other => true,
            }
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(self.of)?;
        self.steps.iter().try_for_each(|step| match step {
            Step::Member(name) => write!(to, ".{name}"),
            Step::Element(number) => write!(to, "[{number}]"),
        })
    }
}

/// Behind the name of the file.
impl fmt::Display for Fault {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { access, why } = self;
        match why {
            Why::Endless => write!(to, "has too many ways to {access:?}"),
            Why::Impossible(says) => write!(to, "has {access:?} as {}, which cannot be", Shown(says)),
            Why::Wrong(says, Some(right)) => {
                write!(to, "has {access:?} as {}, which the kernel has as {}", Shown(says), Shown(right))
            }
            Why::Wrong(says, None) => {
                write!(to, "has {access:?} as {}, which the kernel does not have", Shown(says))
            }
        }
    }
}

impl Fault {
    /// What the user can do.
    pub(super) fn remedy(&self) -> &'static str {
        match self.why {
            Why::Wrong(..) => OWN,
            Why::Endless | Why::Impossible(_) => "name a BTF file that was made for this very kernel (uname -r)",
        }
    }
}

/// A place, for an error.
struct Shown<'place>(&'place Place);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { bit, bits, element_bits, shape, .. } = *self.0;
        let shape = match shape {
            Shape::Number => "number",
            Shape::Pointer => "pointer",
            Shape::Composite => "structure",
            Shape::Other => "thing",
        };
        if bits == element_bits {
            write!(to, "a {shape} of {bits} bits at bit {bit}")
        } else {
            write!(to, "{bits} bits of {shape}s of {element_bits} at bit {bit}")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::types::{KERNEL_BTF, OF_PROGRAMS};
    use super::*;

    /// This kernel's types, as far as the programs have them. `None` where it shows none.
    fn kernel() -> Option<Vec<u8>> {
        let bytes = std::fs::read(KERNEL_BTF).ok()?;
        Btf::read(&bytes, OF_PROGRAMS.iter().map(|name| name.as_bytes()))?.reduced()
    }

    fn read(bytes: &[u8]) -> Btf<'_> {
        Btf::read(bytes, []).unwrap()
    }

    fn word(bytes: &[u8], at: usize) -> u32 {
        u32::from_ne_bytes(*bytes[at..].first_chunk().unwrap())
    }

    fn set_word(bytes: &mut [u8], at: usize, word: u32) {
        bytes[at..at + 4].copy_from_slice(&word.to_ne_bytes());
    }

    /// Where the last member on the way to something is described.
    fn last_member(types: &Btf<'_>, access: &Access) -> Option<usize> {
        let mut structure = types.candidates(access.of).next()?;
        let mut at = None;
        for step in access.steps {
            if let Step::Member(name) = step {
                at = types.member_in_reduced(structure, name);
                structure = types.part(structure, name)?;
            }
        }
        at
    }

    /// What is said of a file whose description of `struct OF`'s member `name` has been changed. The offset has a width before
    /// it where there are bit-fields.
    fn forged(of: &str, name: &str, kernel: Option<&Btf<'_>>, change: impl Fn(u32) -> u32) -> Result<(), String> {
        let mut bytes = super::tests::kernel().unwrap();
        let (at, offset) = {
            let types = read(&bytes);
            let structure = types.candidates(of).next().unwrap();
            let at = types.member_in_reduced(structure, name).unwrap() + 8;
            (at, word(&bytes, at))
        };
        set_word(&mut bytes, at, change(offset));
        check(&read(&bytes), kernel).map_err(|fault| fault.to_string())
    }

    #[test]
    fn the_kernels_own_types_are_right_with_and_without_them_at_hand() {
        let Some(kernel) = kernel() else { return eprintln!("skipped: the kernel shows no types") };
        let kernel = read(&kernel);
        check(&kernel, Some(&kernel)).unwrap();
        check(&kernel, None).unwrap();
        let found = |access: &&Access| {
            kernel.candidates(access.of).any(|id| kernel.places(id, access.steps).unwrap().len() == 1)
        };
        // All but for what other versions of the kernel have.
        let missing: BTreeSet<_> =
            ACCESSES.iter().filter(|access| !found(access)).map(|access| format!("{access:?}")).collect();
        assert!(missing.len() <= 6, "{missing:?}");
    }

    #[test]
    fn each_field_that_is_moved_is_found_where_the_kernel_knows_better() {
        let Some(kernel) = kernel() else { return eprintln!("skipped: the kernel shows no types") };
        let own = read(&kernel);
        let mut moved = 0;
        for access in ACCESSES {
            let Some(at) = last_member(&own, access) else { continue };
            let mut bytes = kernel.clone();
            let offset = word(&bytes, at + 8);
            set_word(&mut bytes, at + 8, offset ^ 0x40);
            let fault = check(&read(&bytes), Some(&own)).unwrap_err();
            assert!(fault.to_string().contains("which the kernel has as"), "{access:?}: {fault}");
            moved += 1;
        }
        assert!(moved > ACCESSES.len() / 2, "{moved}");
    }

    #[test]
    fn a_forgery_is_told_with_the_field_and_both_places() {
        let Some(kernel) = kernel() else { return eprintln!("skipped: the kernel shows no types") };
        let own = read(&kernel);
        let said = forged("sock_common", "skc_dport", Some(&own), |offset| offset + 0x200).unwrap_err();
        let right =
            own.places(own.candidates("sock_common").next().unwrap(), &[Step::Member("skc_dport")]).unwrap()[0].bit;
        let expected = format!(
            "has sock.__sk_common.skc_dport as a number of 16 bits at bit {}, which the kernel has as a number of 16 bits at bit \
             {right}",
            right + 0x200
        );
        assert_eq!(said, expected);
    }

    /// Where a pointer is there is no number, and behind the end there is nothing.
    #[test]
    fn without_the_kernels_own_what_cannot_be_is_found() {
        let Some(kernel) = kernel() else { return eprintln!("skipped: the kernel shows no types") };
        let own = read(&kernel);
        let bit = |of, name| own.places(own.candidates(of).next().unwrap(), &[Step::Member(name)]).unwrap()[0].bit;
        let to = |bit: u64| move |offset: u32| offset & 0xff00_0000 | u32::try_from(bit).unwrap();

        // Onto pointers of the same structure.
        for (of, name, pointer) in
            [("sock", "sk_err", "sk_socket"), ("task_struct", "comm", "nameidata"), ("task_struct", "tgid", "parent")]
        {
            let said = forged(of, name, None, to(bit(of, pointer))).unwrap_err();
            assert!(said.starts_with(&format!("has {of}.{name} as ")) && said.ends_with(", which cannot be"), "{said}");
        }
        // Behind the structure's end.
        for (of, name) in [("sock", "sk_err"), ("tcp_sock", "bytes_acked"), ("cred", "uid")] {
            assert!(forged(of, name, None, to(0xff_fff8)).unwrap_err().ends_with(", which cannot be"));
        }
    }

    /// Type information of these words; strings have their offsets in them.
    fn written(types: &[u32], strings: &[u8]) -> Vec<u8> {
        let length = |bytes: usize| u32::try_from(bytes).unwrap();
        let mut bytes = Vec::new();
        bytes.extend(0xeb9fu16.to_ne_bytes());
        bytes.extend([1, 0]);
        let header = [24, 0, length(4 * types.len()), length(4 * types.len()), length(strings.len())];
        bytes.extend(header.iter().chain(types).flat_map(|word| word.to_ne_bytes()));
        bytes.extend(strings);
        bytes
    }

    const STRUCT: u32 = 4 << 24;

    #[test]
    fn ways_without_end_are_no_way() {
        // A structure without a name that holds two of itself, which C does not have.
        let holds_two = |name: u32| [name, STRUCT | 2, 8, 0, 2, 0, 0, 2, 0];
        let bytes = written(&[holds_two(1), holds_two(0)].concat(), b"\0sock\0");
        let said = check(&read(&bytes), None).unwrap_err().to_string();
        assert_eq!(said, "has too many ways to sock.__sk_common.skc_cookie.counter");
    }

    #[test]
    fn bit_fields_of_old_type_information_do_not_overlap() {
        const INT: [u32; 4] = [0, 1 << 24, 4, 8];

        // `unsigned int a : 8, sk_protocol : 8`, without the flag, and the second one at this bit.
        let structure = |bit: u32| {
            written(&[&INT[..], &[1, STRUCT | 2, 4, 18, 1, 0, 6, 1, bit]].concat(), b"\0sock\0sk_protocol\0a\0")
        };
        check(&read(&structure(8)), None).unwrap();
        let said = check(&read(&structure(4)), None).unwrap_err().to_string();
        assert_eq!(said, "has sock.sk_protocol as a number of 8 bits at bit 4, which cannot be");
    }
}
