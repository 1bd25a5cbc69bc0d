//! inet_ntop(3), which the libc crate does not declare.

use std::ffi::{c_char, c_int, c_void};

unsafe extern "C" {
    /// Writes an address as text. Returns `text`, or NULL: an unknown family (nothing is read then), or too little room.
    pub fn inet_ntop(family: c_int, addr: *const c_void, text: *mut c_char, size: libc::socklen_t) -> *const c_char;
}
