//! Prints each connection of this host as it ends. Run it as root: `cargo run --release --example watch`.
//!
//! Words behind it are a filter: `cargo run --release --example watch -- dport 443 failed`.

use std::io::{self, Write};
use std::process::ExitCode;

use tcpEvent::{Event, Failure, Filter, Known, Watch};

/// A name is whatever its process says it is: escape sequences must not reach the terminal.
fn printable(name: &str) -> String {
    name.chars().flat_map(|c| if c.is_ascii_graphic() { vec![c] } else { c.escape_default().collect() }).collect()
}

fn print(event: &Event) -> io::Result<()> {
    let (name, mut out) = (printable(&event.command()), io::stdout());
    write!(out, "{name}[{}] {} -> {}", event.pid, event.local(), event.remote())?;
    match event.failure {
        Failure::None => writeln!(out, "  received {}, sent {}", event.payload_received, event.payload_sent),
        Failure::GivenUp => writeln!(out, "  given up"),
        Failure::Network if !event.known().contains(Known::ERROR) => writeln!(out, "  failed"),
        Failure::Network => writeln!(out, "  failed: {}", io::Error::from_raw_os_error(event.error)),
    }
}

fn watch(filter: &str) -> Result<(), Box<dyn std::error::Error>> {
    let filter: Filter = filter.parse()?;
    let watch = Watch::builder().closes().filter(filter).open()?;
    for event in watch.events() {
        print(&event?)?;
    }
    Ok(())
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match watch(&words.join(" ")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("watch: {error}");
            ExitCode::FAILURE
        }
    }
}
