//! What all rungs do with a BPF object before it is loaded.

use std::mem::MaybeUninit;
use std::path::Path;
use std::slice;

use libbpf_rs::{ObjectBuilder, OpenObject};

use super::messages::explain;
use super::refusal::{Refusal, Stage};
use crate::config::ProbeSettings;
use crate::sys::shared::{TCP_WANTED_CLOSES, TCP_WANTED_RETRIES, TCP_WANTED_STATES, TCP_WANTED_UNSENT};

/// FreePlaces for objects, one for each try that is left.
pub struct FreePlaces<'obj>(slice::IterMut<'obj, MaybeUninit<OpenObject>>);

impl<'obj> FreePlaces<'obj> {
    pub fn new(all: &'obj mut [MaybeUninit<OpenObject>]) -> Self {
        Self(all.iter_mut())
    }

    pub fn next(&mut self) -> Result<&'obj mut MaybeUninit<OpenObject>, Refusal> {
        self.0.next().ok_or_else(|| Refusal::new(Stage::Open, "no place for another try"))
    }
}

/// What `accept` calls for the new socket, in the context of the process.
pub const ACCEPT_GRAFT: &str = "security_sock_graft";

/// Where a socket is destroyed, most often by the process that lets go of it.
pub const DESTROY: &str = "tcp_destroy_sock";

/// Of objects that are fitted to these types, or to the kernel's own.
pub fn builder(btf: Option<&Path>) -> Result<ObjectBuilder, Refusal> {
    let mut object = ObjectBuilder::default();
    if let Some(btf) = btf {
        explain(Stage::Open, || object.btf_custom_path(btf).map(|_| ()))?;
    }
    Ok(object)
}

/// Which events are wanted: `enum tcp_wanted`.
pub fn wanted(settings: &ProbeSettings) -> u8 {
    let states = if settings.wanted.states { TCP_WANTED_STATES } else { 0 };
    let closes = if settings.wanted.closes { TCP_WANTED_CLOSES } else { 0 };
    let retries = if settings.wanted.retries { TCP_WANTED_RETRIES } else { 0 };
    let unsent = if settings.wanted.unsent { TCP_WANTED_UNSENT } else { 0 };
    states | closes | retries | unsent
}
