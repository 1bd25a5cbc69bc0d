//! Snapshots of the sockets that are open: what sock_diag reports, joined with the process that holds each inode.
//!
//! [`diag`] turns one message into an event, [`holders`] finds who holds an inode, [`sweep`] does the rounds.
//! For probes that cannot see it themselves, [`destroyed`] hears of the counters of sockets that are gone, and [`older`]
//! lists once who holds what.

pub mod destroyed;
pub mod diag;
pub mod holders;
pub mod older;
mod socket;
pub mod sweep;
