//! The library on a running kernel: real connections, seen by a real consumer, checked against what the traffic was.
//! As root only. `TCPEVENT_PROBE` chooses the rung; `tests/vm.rs` runs the same tests under other kernels.

mod closes;
mod consumer;
mod host;
mod lifecycle;
mod names;
mod owners;
mod privileges;
mod snapshots;
mod traffic;
mod truth;
