//! The owner and the place of an endpoint: process, user, socket, network namespace, cgroup.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};

use crate::api_network::Network;
use crate::api_traffic::{FIN_WAIT2, cookie, cookies_of, inode, own_netns, wait_for_state};
use crate::api_watcher::{CLOSES, Event, STATES, Watcher, states};
use crate::consumer::{c_program, is_beyond_the_rung, lacks_cookies, sees_accepts, turn};
use crate::traffic::{Connection, Peer, V4, own_comm, set_linger_0};

// ---- Owners

#[test]
fn each_end_is_of_the_process_that_has_acted_on_it_last() {
    const UID: u32 = 1003;
    const COMM: &str = "tev-api-peer";

    if is_beyond_the_rung("who has reset a connection") {
        return;
    }

    let _turn = turn();
    let mut watcher = Watcher::open(CLOSES);
    let mut peer = Peer::run(UID, COMM.as_bytes(), b"peer");
    let own = (process::id(), 0, own_comm());
    let its = (peer.pid(), UID, COMM.to_owned());

    // One that closes by itself, and one whose peer is killed.
    let closing = peer.connect();
    let mut idle = peer.connect();
    let idle_cookie = cookie(&idle);
    let [of_closing, of_idle] = [&closing, &idle].map(|client| client.local_addr().unwrap().port());
    let listening = peer.port();
    set_linger_0(&closing);
    drop(closing);
    drop(peer);
    let _ = idle.read(&mut [0]);
    set_linger_0(&idle);
    drop(idle);

    let ends = [(of_closing, listening), (listening, of_closing), (of_idle, listening), (listening, of_idle)];
    let events = watcher.events_until(0, "all four ends", |events| {
        ends.iter().all(|ports| events.iter().any(|event| event.ports() == *ports))
    });
    let [a, b, c, d] = ends.map(|ports| events.iter().find(|event| event.ports() == ports).unwrap());
    let idle_by = if sees_accepts() { "accept" } else { "inode" };
    for (event, owner, owner_by) in [(a, &own, "close"), (b, &its, idle_by), (c, &own, "close"), (d, &its, "close")] {
        assert_eq!((event.pid, event.uid, event.comm.clone()), *owner, "{event:#?}");
        assert_eq!(event.owner_by, owner_by, "{event:#?}");
    }
    assert_eq!(c.cookie, idle_cookie);
}

#[test]
fn an_end_that_does_nothing_but_connect_has_its_owner_from_there() {
    if is_beyond_the_rung("who has reset a connection") {
        return;
    }
    let _turn = turn();
    let mut watcher = Watcher::open(CLOSES);
    let connection = Connection::open(V4(), V4());
    let cookies = cookies_of(&connection);
    let Connection { mut client, server, .. } = connection;
    set_linger_0(&server);
    drop(server);
    client.read(&mut [0]).expect_err("it was reset");
    let [client, server] = watcher.closes(0, cookies);
    assert_eq!([client.owner_by.as_str(), server.owner_by.as_str()], ["connect", "close"]);
    assert_eq!([client.pid, server.pid], [process::id(); 2]);
}

// ---- Sockets

#[test]
fn the_inode_is_that_of_the_open_socket_as_long_as_there_is_one() {
    if is_beyond_the_rung("inodes") || lacks_cookies() {
        return;
    }
    let _turn = turn();
    let mut watcher = Watcher::open(STATES);
    let connection = Connection::open(V4(), V4());
    let cookies = cookies_of(&connection);
    let inodes = [inode(&connection.client), inode(&connection.server)];
    let Connection { client, mut server, .. } = connection;
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(server.read(&mut [0]).unwrap(), 0);
    wait_for_state(&client, FIN_WAIT2);
    // The client's end passes its last state without a process.
    drop(client);
    set_linger_0(&server);
    drop(server);
    let [client, server] = watcher.lives(0, cookies);
    assert_eq!(states(&client), "CLOSE SYN_SENT ESTABLISHED FIN_WAIT1 FIN_WAIT2 CLOSE");
    assert_eq!(states(&server), "SYN_RECV ESTABLISHED CLOSE_WAIT CLOSE");
    let of = |life: &[Event]| life.iter().map(|event| event.inode).collect::<Vec<_>>();
    // FIN_WAIT2 comes while it is open; CLOSE when it is not.
    assert_eq!(of(&client), [inodes[0], inodes[0], inodes[0], inodes[0], 0]);
    // When it becomes established it has not been accepted.
    assert_eq!(of(&server)[..2], [0, inodes[1]]);
}

// ---- Network namespaces

#[test]
fn the_network_namespace_is_that_of_the_socket_and_not_of_the_watcher() {
    if is_beyond_the_rung("network namespaces") {
        return;
    }
    let _turn = turn();
    let network = Network::new();
    let mut watcher = Watcher::open(CLOSES);
    let listener = network.there.run(|| TcpListener::bind((Network::THERE_V4, 0)).unwrap());
    let there = network.there.run(own_netns);
    let mut client = network.here.run(|| TcpStream::connect(listener.local_addr().unwrap()).unwrap());
    let (server, _) = listener.accept().unwrap();
    let cookies = [cookie(&client), cookie(&server)];
    set_linger_0(&server);
    drop(server);
    client.read(&mut [0]).expect_err("it was reset");
    let [client, server] = watcher.closes(0, cookies);
    assert_eq!([client.netns, server.netns], [network.here.inode(), there]);
    assert_ne!(client.netns, server.netns);
    let connection = Connection::open(V4(), V4());
    let cookies = cookies_of(&connection);
    connection.close_client_first();
    let own = fs::metadata("/proc/self/ns/net").unwrap().ino();
    assert!(watcher.closes(0, cookies).iter().all(|event| u64::from(event.netns) == own));
}

// ---- Cgroups

/// The cgroup hierarchy, version 2; mounted for the test if missing.
pub struct Cgroups {
    root: PathBuf,
    is_own: bool,
}

impl Cgroups {
    pub fn find() -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mounted = mounts.lines().find_map(|line| {
            let columns: Vec<_> = line.split(' ').collect();
            (columns[2] == "cgroup2").then(|| PathBuf::from(columns[1]))
        });
        if let Some(root) = mounted {
            return Self { root, is_own: false };
        }
        let root = PathBuf::from("/tmp/tcpevent-cgroup2");
        fs::create_dir_all(&root).unwrap();
        let status = Command::new("mount").args(["-t", "cgroup2", "none"]).arg(&root).status().unwrap();
        assert!(status.success(), "cgroup2 cannot be mounted");
        Self { root, is_own: true }
    }

    /// This process's own folder.
    pub fn own(&self) -> PathBuf {
        let list = fs::read_to_string("/proc/self/cgroup").unwrap();
        let path = list.lines().find_map(|line| line.strip_prefix("0::/")).expect("it is in one of version 2");
        self.root.join(path)
    }

    pub fn make(&self, name: &str) -> Cgroup {
        let folder = self.root.join(name);
        // An earlier run may have left it.
        let _ = fs::remove_dir(&folder);
        fs::create_dir(&folder).unwrap();
        Cgroup { folder }
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        if self.is_own {
            let _ = Command::new("umount").arg(&self.root).status();
        }
    }
}

/// A cgroup of a test, which must be empty when dropped.
pub struct Cgroup {
    pub folder: PathBuf,
}

impl Cgroup {
    /// A server in it that accepts two connections.
    pub fn serve(&self) -> Server {
        let processes = self.folder.join("cgroup.procs");
        let mut command = Command::new(c_program("peer"));
        command.args(["0", "tev-in-cgroup"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        // SAFETY: opening, writing and closing a file is allowed between fork and exec; only the path is allocated,
        // which exists already.
        unsafe { command.pre_exec(move || fs::write(&processes, "0")) };
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        let mut byte = [0];
        let output = child.stdout.as_mut().unwrap();
        while output.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
            line.push(byte[0].into());
        }
        child.stdin.as_mut().unwrap().write_all(b"\n\n").unwrap();
        Server { child, port: line.parse().unwrap() }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.folder);
    }
}

/// A process in a cgroup, and the port of 127.0.0.1 on which it listens. Killed when dropped.
pub struct Server {
    child: Child,
    pub port: u16,
}

impl Server {
    /// Opens a connection to it and resets it. Returns the client's port.
    pub fn connect_and_reset(&self) -> u16 {
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        let port = client.local_addr().unwrap().port();
        set_linger_0(&client);
        port
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn id_of(folder: &Path) -> u64 {
    fs::metadata(folder).unwrap().ino()
}

#[test]
fn the_cgroup_is_that_in_which_the_socket_was_made() {
    if is_beyond_the_rung("cgroups") {
        return;
    }
    let _turn = turn();
    let cgroups = Cgroups::find();
    let cgroup = cgroups.make("tcpevent-places");
    let mut watcher = Watcher::open(CLOSES);
    let server = cgroup.serve();
    let client = server.connect_and_reset();
    let ends = [(client, server.port), (server.port, client)];
    let events = watcher.events_until(0, "both ends", |events| {
        ends.iter().all(|ports| events.iter().any(|event| event.ports() == *ports))
    });
    let ids = ends.map(|ports| events.iter().find(|event| event.ports() == ports).unwrap().cgroup);
    // Connections are in their listener's cgroup.
    assert_eq!(ids, [id_of(&cgroups.own()), id_of(&cgroup.folder)]);
    assert_ne!(ids[0], ids[1]);
}
