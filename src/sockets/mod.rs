//! Snapshots of the open sockets: what sock_diag reports, joined with the process that holds each inode.
//!
//! [`diag`] turns one message into an event, [`holders`] finds who holds an inode, [`sweep`] lists all sockets. For
//! probes that cannot read these themselves, [`destroyed`] receives the last counters of freed sockets, and [`older`]
//! lists the holders once.

pub mod destroyed;
pub mod diag;
pub mod holders;
pub mod older;
mod socket;
pub mod sweep;
