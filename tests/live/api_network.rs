//! Two hosts in network namespaces, connected by a cable that can be cut.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::{io, thread};

/// The two hosts, removed when dropped. Their neighbour entries are fixed, so there is no ARP.
pub struct Network {
    pub here: Host,
    pub there: Host,
}

/// A network namespace of `ip netns`.
pub struct Host {
    pub name: &'static str,
    device: &'static str,
    address: &'static str,
    mac: &'static str,
    /// Address and hardware address of the other host.
    other: [&'static str; 2],
}

impl Network {
    /// Documentation addresses (RFC 5737): unused.
    pub const HERE_V4: &str = "198.51.100.1";
    pub const THERE_V4: &str = "198.51.100.2";
    /// A host behind THERE, which reports it as unreachable. The route to it is never cut: it uses another address.
    pub const UNREACHABLE_V4: &str = "203.0.113.9";
    const GATEWAY_V4: &str = "198.51.100.3";

    const HERE_MAC: &str = "02:00:00:00:00:01";
    const THERE_MAC: &str = "02:00:00:00:00:02";

    pub fn new() -> Self {
        let here = Host {
            name: "tcpevent-here",
            device: "tev0",
            address: Self::HERE_V4,
            mac: Self::HERE_MAC,
            other: [Self::THERE_V4, Self::THERE_MAC],
        };
        let there = Host {
            name: "tcpevent-there",
            device: "tev1",
            address: Self::THERE_V4,
            mac: Self::THERE_MAC,
            other: [Self::HERE_V4, Self::HERE_MAC],
        };
        // An earlier run may have left them.
        for host in [&here, &there] {
            host.remove();
            ip(&format!("netns add {}", host.name));
        }
        ip(&format!("link add tev0 netns {} type veth peer tev1 netns {}", here.name, there.name));
        for host in [&here, &there] {
            host.ip(&format!("link set {} address {}", host.device, host.mac));
            host.ip(&format!("addr add {}/24 dev {}", host.address, host.device));
            host.ip("link set lo up");
            host.ip(&format!("link set {} up", host.device));
            host.mend();
        }
        here.ip(&format!("neigh add {} lladdr {} dev tev0 nud permanent", Self::GATEWAY_V4, Self::THERE_MAC));
        here.ip(&format!("route add 203.0.113.0/24 via {}", Self::GATEWAY_V4));
        there.ip("route add unreachable 203.0.113.0/24");
        there.run(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());
        Self { here, there }
    }

    /// Gives the router to the unreachable host another kind of route there (ip-route(8)), or none.
    pub fn route_unreachable(&self, kind: Option<&str>) {
        // The kernel sends one host two such answers at once and then one a second; without this limit, five.
        self.there.run(|| fs::write("/proc/sys/net/ipv4/icmp_ratelimit", "0").unwrap());
        self.there.ip("route flush 203.0.113.0/24");
        if let Some(kind) = kind {
            self.there.ip(&format!("route add {kind} 203.0.113.0/24"));
        }
    }
}

impl Host {
    /// From now on nothing that it sends reaches the other host.
    pub fn cut(&self) {
        self.set_neighbour("02:00:00:00:00:09");
    }

    pub fn mend(&self) {
        self.set_neighbour(self.other[1]);
    }

    fn set_neighbour(&self, mac: &str) {
        self.ip(&format!("neigh replace {} lladdr {mac} dev {} nud permanent", self.other[0], self.device));
    }

    /// Runs something in a thread of this host. Sockets it creates stay there.
    pub fn run<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(self.path()).unwrap();
        thread::scope(|scope| {
            let entered = scope.spawn(move || {
                // SAFETY: takes no pointers, and affects this thread only.
                let result = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
                assert_eq!(result, 0, "setns: {}", io::Error::last_os_error());
                run()
            });
            entered.join().unwrap()
        })
    }

    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// Inode number of the namespace.
    pub fn inode(&self) -> u32 {
        fs::metadata(self.path()).unwrap().ino().try_into().unwrap()
    }

    pub fn ip(&self, arguments: &str) {
        ip(&format!("-n {} {arguments}", self.name));
    }

    fn remove(&self) {
        let _ = Command::new("ip").args(["netns", "del", self.name]).stderr(Stdio::null()).status();
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.here.remove();
        self.there.remove();
    }
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("ip (iproute2) runs");
    assert!(status.success(), "ip {arguments}");
}
