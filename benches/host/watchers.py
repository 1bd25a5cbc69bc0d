"""Watchers: none, the library in a process that counts its events, or one of libbpf-tools.

Used as contexts: on entry it is attached, and on exit it is gone. `settle` waits until it has dealt with all that
happened, and `finish` gives the events that it has told of a port.
"""

import os
import shutil
import time

from . import tasks
from .programs import LIBRARY, PATIENCE, BenchError, Child, build
from .traffic import CLOSES, TRANSITIONS

RUNGS = ("kprobe", "tp_btf")

# An event that does not come within this time is lost; under emulation everything is slower, but no single thing as
# slow.
LOST_AFTER = 5.0


class Nobody:
    """The host without a watcher."""

    name = "nobody"
    pid = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def cpu_ns(self):
        return 0

    def settle(self, _connections):
        pass

    def finish(self, _port):
        return 0


class Watcher:
    """A process that watches: `start` gives it, and `attach` returns once it sees what happens."""

    def __enter__(self):
        self.child = self.start()
        self.pid = self.child.pid
        try:
            self.attach()
        except BaseException:
            self.child.kill()
            raise
        return self

    def __exit__(self, *failure):
        self.child.__exit__(*failure)

    def cpu_ns(self):
        return tasks.cpu_ns(self.pid)


class Library(Watcher):
    """The library, in a host that only counts: benches/c/consumer.c. It formats and prints nothing, but
    DequeuePerfEvent itself returns addresses as text.
    """

    expected = CLOSES

    def __init__(self, port, *, rung=None, probe=True, network=None, consume=True, **settings):
        self.name = f"libtcpEvent, {rung}" if rung else "libtcpEvent"
        self.port = port
        self.probe = probe
        self.network = network
        self.consume = consume
        # The defaults, except for settings that a figure needs.
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("TCPEVENT_")}
        self.environment["TCPEVENT_LOG"] = "info"
        if rung:
            self.environment["TCPEVENT_PROBE"] = rung
        for name, value in settings.items():
            self.environment[f"TCPEVENT_{name.upper()}"] = str(value)

    def start(self):
        return Child([build("consumer")], environment=self.environment, network=self.network)

    def attach(self):
        self.memory_before_kib = tasks.memory_kib(self.pid)
        self.child.ask(f"load {LIBRARY}", "loaded")
        if self.probe:
            self.started_ms = float(self.child.ask("start", "started")[0])
        if self.consume:
            self.child.ask(f"consume {self.port}", "consuming")

    def sweep_cpu_ns(self):
        return tasks.cpu_ns(self.pid, "tcpevent-sweep")

    def counts(self):
        """Events of the port, and of others."""
        of_port, others = self.child.ask("counts", "counts")
        return int(of_port), int(others)

    def latency(self):
        """Since the last call: events, and p50, p99 and the longest in ms."""
        count, *ns = self.child.ask("latency", "latency")
        return {"events": int(count), **{name: int(value) / 1e6 for name, value in zip(("p50", "p99", "max"), ns)}}

    def settle(self, connections):
        """Returns when all events have come, or no more come."""
        wait_for_events(self, lambda: self.counts()[0] >= connections.made * CLOSES)

    def stop(self):
        """Stops the library. Returns its own counters."""
        self.child.ask("stop", "stopped")
        for line in reversed(self.child.errors().splitlines()):
            words = [word.split("=") for word in line.split() if "=" in word]
            if words and words[0][0] == "closes":
                return {name: int(value) for name, value in words}
        return {}

    def finish(self, _port):
        return self.counts()[0]


def wait_for_events(library, enough, patience=LOST_AFTER):
    """Waits until there are enough events, or none have come for long."""
    seen, since = library.counts(), time.monotonic()
    while not enough() and time.monotonic() - since < patience:
        time.sleep(0.02)
        if (now := library.counts()) != seen:
            seen, since = now, time.monotonic()


class Peer(Watcher):
    """One of libbpf-tools. It writes to a file in memory, so that no reader has to run."""

    def __init__(self, name, expected):
        self.name = name
        self.path = find(name)
        self.expected = expected

    def start(self):
        return Child([self.path], to_file=True)

    def __exit__(self, *_):
        self.child.kill()

    def attach(self):
        """Its header stays in a buffer, but its descriptors show it: it attaches, then it opens what it reads from."""
        until = time.monotonic() + PATIENCE
        before = None
        while True:
            if self.child.process.poll() is not None:
                raise BenchError(self.child.ended())
            now = tasks.descriptors(self.pid)
            kinds = {target.removeprefix("anon_inode:").strip("[]") for target in now.values()}
            if {"bpf-prog", "eventpoll"} <= kinds and kinds & {"bpf_link", "perf_event"} and now == before:
                return
            if time.monotonic() > until:
                raise BenchError(f"{self.name} is not attached after {PATIENCE:g} s")
            before = now
            time.sleep(0.02)

    def settle(self, _connections):
        """Returns when it is practically idle: it wakes up every 100 ms for nothing."""
        until = time.monotonic() + PATIENCE
        before = self.cpu_ns()
        while time.monotonic() < until:
            began = time.monotonic_ns()
            time.sleep(0.1)
            now = self.cpu_ns()
            if now - before < (time.monotonic_ns() - began) / 20:
                return
            before = now
        raise BenchError(f"{self.name} does not come to rest")

    def finish(self, port):
        """Lines of that port, except the listening socket's. It writes the last ones when it ends."""
        self.child.interrupt()
        word = f" {port} ".encode()
        return sum(word in line and b" 0.0.0.0 " not in line for line in self.child.output().splitlines())


def tcplife():
    return Peer("tcplife", CLOSES)


def tcpstates():
    return Peer("tcpstates", TRANSITIONS)


def find(name):
    """The path of a command of libbpf-tools: later Debian releases append the package's name."""
    folders = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"
    path = shutil.which(name, path=folders) or shutil.which(f"{name}-libbpf", path=folders)
    if path is None:
        raise BenchError(f"{name} is missing: apt-get install libbpf-tools")
    return path


def rungs():
    """Each rung of the library's ladder, with None if it works, or the reason why not."""
    refusals = {}
    for rung in RUNGS:
        try:
            with Library(0, rung=rung):
                refusals[rung] = None
        except BenchError as error:
            # Of "cannot watch ..: RUNG: CAUSE; REMEDY": a missing feature of the kernel needs no remedy.
            refusals[rung] = str(error).split(f"{rung}: ", 1)[-1].split("; ")[0]
    return refusals
