//! The library's use of the system, whatever it watches: threads, locks, descriptors, clocks, privileges.

pub mod cancellation;
pub mod clock;
pub mod descriptors;
pub mod files;
pub mod folder;
pub mod log;
pub mod mapping;
pub mod memory;
pub mod once;
pub mod one_line;
pub mod own_fd;
pub mod per_thread;
pub mod pid_namespace;
pub mod privilege;
pub mod semaphore;
pub mod shared;
pub mod threads;
pub mod wake;
