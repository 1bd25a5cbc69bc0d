//! What the fuzz targets (`fuzz/`) need of modules that are private. It exists where they are built only.

use crate::probe::{Btf, Meaning, Step};

/// Reads type information, asks for what the library asks for, and reduces it. What comes out must be type information
/// itself, and reduce to as many types.
pub fn btf(bytes: &[u8]) {
    let wanted = || ["sock", "tcp_sock", "socket", "task_struct"].map(str::as_bytes);
    let Some(btf) = Btf::read(bytes, wanted()) else { return };
    if let Some(id) = btf.id(Meaning::Struct, "sock") {
        let _ = btf.has_member(id, "sk_protocol");
    }
    let _ = btf.id(Meaning::Typedef, "socket");
    if let Some(reduced) = btf.reduced() {
        let again = Btf::read(&reduced, wanted()).expect("what is reduced can be read");
        for id in again.candidates("sock").take(8) {
            let _ = again.places(id, &[Step::Member("__sk_common"), Step::Member("skc_daddr")]);
        }
        let twice = again.reduced().expect("and reduced");
        assert_eq!(twice.len(), reduced.len());
    }
}
