//! The library on a running kernel: real connections, watched by a real consumer, compared with the known traffic.
//! Needs root. `TCPEVENT_PROBE` chooses the rung; `tests/vm.rs` runs the same tests on other kernels.

mod api;
mod api_closes;
mod api_ends;
mod api_filters;
mod api_network;
mod api_places;
mod api_reading;
mod api_snapshots;
mod api_states;
mod api_table;
mod api_traffic;
mod api_watcher;
mod btf_files;
mod closes;
mod confinement;
mod consumer;
mod containers;
mod endings;
mod endpoints;
mod forged;
mod holders;
mod host;
mod large_host;
mod lifecycle;
mod names;
mod native;
mod old_kernel;
mod owners;
mod privileges;
mod same_addresses;
mod snapshots;
mod sock_diag;
mod tracepoint;
mod traffic;
mod truth;
