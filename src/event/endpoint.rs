//! The addresses and ports of an endpoint, in a form that can be compared.

use crate::event::Event;

/// Both ends of a connection. IPv4 addresses are in their `::ffff:` form: not every kernel tells them from those.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    local: (u128, u16),
    remote: (u128, u16),
}

impl Endpoint {
    /// An event's.
    pub fn of(event: &Event) -> Self {
        Self {
            local: (normal_form(event.family, &event.local_addr), event.local_port),
            remote: (normal_form(event.family, &event.remote_addr), event.remote_port),
        }
    }
}

/// An address as a filter's prefixes have it.
pub fn normal_form(family: u16, addr: &[u8; 16]) -> u128 {
    let addr = u128::from_be_bytes(*addr);
    if i32::from(family) == libc::AF_INET { 0xffff << 32 | addr >> 96 } else { addr }
}
