//! What an unprivileged user can forge in its own network namespaces: it is reported as what it is, or ignored.

use std::fs;
use std::io::ErrorKind;
use std::process::{Command, Stdio};
use std::thread;

use netlink_sys::SocketAddr;

use crate::api_traffic::own_netns;
use crate::api_watcher::{CLOSES, Event, Watcher};
use crate::consumer::{NOBODY, rung_is_tracepoint, turn};
use crate::sock_diag::{check_with_forged_ends, groups, sender};

/// Documentation addresses (RFC 5737): unused.
const VICTIMS: [&str; 2] = ["192.0.2.8", "198.51.100.5"];

/// Has user nobody, as root of its own namespaces, be refused by `VICTIMS`. Returns that network namespace.
fn refuse_as_nobody(port: u16) -> u32 {
    let script = format!(
        "ip link set lo up; for victim in {}; do ip addr add $victim/32 dev lo; (exec 3<>/dev/tcp/$victim/{port}) 2>/dev/null; \
         done; stat -L -c %i /proc/self/ns/net",
        VICTIMS.join(" ")
    );
    let mut command = Command::new("setpriv");
    command.arg(format!("--reuid={NOBODY}")).arg(format!("--regid={NOBODY}")).arg("--clear-groups");
    command.args(["unshare", "-Urn", "bash", "-c", &script]).current_dir("/").stdin(Stdio::null());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}

#[test]
fn failures_in_a_namespace_of_ones_own_bear_its_number_and_do_not_fit_the_filter() {
    const PORT: u16 = 443;

    let _turn = turn();
    // Debian's own switch, and the kernel's.
    for switch in ["kernel/unprivileged_userns_clone", "user/max_user_namespaces"] {
        if fs::read_to_string(format!("/proc/sys/{switch}")).is_ok_and(|value| value.trim() == "0") {
            return eprintln!("skipped: {switch} keeps users from making namespaces");
        }
    }
    let mut watcher = Watcher::open(CLOSES);
    let with_filter = format!("{CLOSES} filter=netns self");
    if rung_is_tracepoint() {
        let refusal = watcher.refusal(&with_filter);
        assert!(refusal.text.contains("netns"), "{}", refusal.text);
    } else {
        watcher.open_handle(1, &with_filter);
    }
    let netns = refuse_as_nobody(PORT);
    assert_ne!(netns, own_netns());
    let is_one = |event: &&Event| event.remote.port() == PORT;
    let events =
        watcher.events_until(0, "both failures", |events| events.iter().filter(is_one).count() == VICTIMS.len());
    let mut failures: Vec<_> = events.iter().filter(is_one).collect();
    failures.sort_by_key(|event| event.remote);
    let remotes: Vec<_> = failures.iter().map(|event| event.remote.ip().to_string()).collect();
    assert_eq!(remotes, VICTIMS);
    // The plain tracepoint does not report namespaces: 0 means unknown.
    let expected = if rung_is_tracepoint() { 0 } else { netns };
    assert!(failures.iter().all(|event| event.netns == expected && event.uid == NOBODY), "{failures:#?}");
    if rung_is_tracepoint() {
        return;
    }
    let others = watcher.pass_later_connection(1);
    assert!(others.iter().all(|event| event.netns == own_netns()), "{others:#?}");
}

/// A netlink socket belongs to one network namespace. (For a sender in the same one see `sock_diag.rs`.)
#[test]
fn a_forged_end_from_another_network_namespace_does_not_arrive() {
    let _turn = turn();
    check_with_forged_ends(|ports, forged| {
        let send_from_elsewhere = || {
            // SAFETY: takes a flag, and affects this thread only.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
            let sender = sender();
            for datagram in forged {
                // The groups have no members there; the kernel's own socket may take the message, which is addressed to
                // it too.
                for place in groups() {
                    let _ = sender.send_to(datagram, &place, libc::MSG_DONTWAIT);
                }
                for port in ports {
                    let refused = sender.send_to(datagram, &SocketAddr::new(*port, 0), libc::MSG_DONTWAIT).unwrap_err();
                    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "there is no such socket there");
                }
            }
        };
        thread::scope(|scope| scope.spawn(send_from_elsewhere).join().unwrap());
    });
}
