//! The monitor `tcp_trace`, run as root with real connections, failing networks, a scripted webhook, rotated logs, and
//! full disks.

#[path = "tcp_trace/alerts.rs"]
mod alerts;
#[path = "tcp_trace/arguments.rs"]
mod arguments;
#[path = "live/consumer.rs"]
#[allow(dead_code)] // The live tests use the rest.
mod consumer;
#[path = "tcp_trace/failures.rs"]
mod failures;
#[path = "tcp_trace/filters.rs"]
mod filters;
#[path = "tcp_trace/floods.rs"]
mod floods;
#[path = "tcp_trace/hidden_types.rs"]
mod hidden_types;
#[path = "tcp_trace/installation.rs"]
mod installation;
#[path = "../src/api/end_to_end/kernel.rs"]
#[allow(dead_code)] // The library's own tests need the rest.
mod kernel;
#[path = "tcp_trace/logs.rs"]
mod logs;
#[path = "tcp_trace/monitor.rs"]
mod monitor;
#[path = "tcp_trace/network.rs"]
mod network;
#[path = "tcp_trace/privileges.rs"]
mod privileges;
#[path = "tcp_trace/signals.rs"]
mod signals;
#[path = "tcp_trace/states.rs"]
mod states;
#[path = "tcp_trace/synthetic.rs"]
mod synthetic;
#[path = "live/traffic.rs"]
#[allow(dead_code)]
mod traffic;
#[path = "tcp_trace/unknowns.rs"]
mod unknowns;
#[path = "tcp_trace/webhook.rs"]
mod webhook;
