//! Snapshots of the sockets that are open: what sock_diag reports, joined with the process that holds each inode.
//!
//! [`diag`] turns one message into an event, [`owners`] finds who holds an inode, [`sweep`] does the rounds.

pub mod diag;
pub mod owners;
pub mod sweep;
