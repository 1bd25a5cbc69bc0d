"""Connections and sockets to watch, each kind in a network namespace of its own."""

import os

from . import tasks
from .programs import Child, build

# The server's port. Below the ephemeral ports, so that no other connection gets it by chance.
PORT = 7117

# A short connection to a watcher: two ends close, and each goes through five changes of state.
CLOSES = 2
TRANSITIONS = 10

# Sent before a measurement, so that the kernel and the programs have done their one-time work.
WARM_UP = 500


def processors(apart):
    """The processors of client and server: one each, or the same."""
    own = sorted(os.sched_getaffinity(0))
    return (own[0], own[1]) if apart and len(own) > 1 else (own[0], own[0])


class Connections(Child):
    """Makes connections: benches/c/connections.c."""

    def __init__(self, apart=True):
        super().__init__([build("connections"), PORT, *processors(apart)])
        self.made = 0
        self.server = int(self.greeting()[1])

    def run(self, count, rate=0):
        """So many short ones, at a rate or as fast as possible. Returns the seconds it took."""
        seconds = self.ask(f"run {count} {rate}", "ran")[1]
        self.made += count
        return float(seconds)

    def hold(self, count):
        """Keeps so many open from now on."""
        self.ask(f"hold {count}", "held")

    def cpu_ns(self):
        """CPU time of the client and the server."""
        return tasks.cpu_ns(self.pid) + tasks.cpu_ns(self.server)


class Sockets(Child):
    """Holds sockets open: benches/c/sockets.c."""

    def __init__(self, sockets, processes, network=None):
        here = [] if network is None else ["here"]
        super().__init__([build("sockets"), sockets, processes, *here], network=network)
        self.greeting()
