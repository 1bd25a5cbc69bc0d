//! Makes Rust of what the BPF programs share with the library, as the type information of an object has it: each structure, with
//! its size and the place of each field asserted, and each constant of an enumeration. The build includes this file.

use std::fmt::Write;
use std::path::Path;

use libbpf_rs::btf::types::{Array, Enum, EnumMember, Int, IntEncoding, MemberAttr, Struct};
use libbpf_rs::btf::{Btf, BtfType, HasSize};

/// The items of a module that has zerocopy's traits in scope.
pub fn rust_of(object: &Path) -> String {
    let btf = Btf::from_path(object).expect("the object has type information");
    let structures = btf.type_by_kind::<Struct<'_>>().map(|found| structure(&btf, &found));
    let constants = btf.type_by_kind::<Enum<'_>>().map(|found| constants(&found));
    structures.chain(constants).collect()
}

fn structure(btf: &Btf<'_>, found: &Struct<'_>) -> String {
    let name = name_of(found);
    let (mut fields, mut asserted) = (String::new(), format!("size_of::<{name}>() == {}", found.size()));
    for member in found.iter() {
        let field = member.name.and_then(|name| name.to_str()).expect("a field has a name");
        let MemberAttr::Normal { offset: bits } = member.attr else { panic!("{name}.{field} is a bit field") };
        let of = type_of(btf.type_by_id(member.ty).expect("the type is there"));
        writeln!(fields, "pub {field}: {of},").expect("a string takes all");
        write!(asserted, " && offset_of!({name}, {field}) == {}", bits / 8).expect("a string takes all");
    }
    format!(
        "/// `struct {name}`\n#[repr(C)]\n\
         #[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]\n\
         pub struct {name} {{\n{fields}}}\nconst _: () = assert!({asserted});\n"
    )
}

fn type_of(found: BtfType<'_>) -> String {
    let found = found.skip_mods_and_typedefs();
    if let Ok(array) = Array::try_from(found) {
        return format!("[{}; {}]", type_of(array.contained_type()), array.capacity());
    }
    let Ok(number) = Int::try_from(found) else {
        return name_of(&Struct::try_from(found).expect("numbers, arrays and structures are shared")).to_owned();
    };
    // Text is bytes, which need not be UTF-8.
    let is_signed = matches!(number.encoding, IntEncoding::Signed) && name_of(&found) != "char";
    format!("{}{}", if is_signed { 'i' } else { 'u' }, number.bits)
}

/// As bytes, like the fields of the records; as words where one of them is larger.
fn constants(found: &Enum<'_>) -> String {
    let name = name_of(found);
    let largest = found.iter().map(|constant| constant.value).max().expect("it has constants");
    let kind = if u8::try_from(largest).is_ok() { "u8" } else { "u32" };
    let constant = |constant: EnumMember<'_>| {
        let (is, value) =
            (constant.name.and_then(|name| name.to_str()).expect("a constant has a name"), constant.value);
        format!("/// Of `enum {name}`.\npub const {is}: {kind} = {value};\n")
    };
    found.iter().map(constant).collect()
}

fn name_of<'btf>(found: &BtfType<'btf>) -> &'btf str {
    found.name().and_then(|name| name.to_str()).expect("what is shared has a name")
}
