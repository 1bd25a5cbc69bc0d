"""What watching costs in instructions: `make cost`.

The machine is emulated, and its clock counts the instructions it executes: a nanosecond is one. So a figure is the same on
whatever host, and from boot to boot to 0.003 %, but for the first pass after a boot, which is not counted. It is a number of
instructions, and no time: what a cache miss or a trap costs does not show.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

from .programs import LIBRARY, ROOT, BenchError, Child, build, ensure_tracefs
from .traffic import PORT
from .watchers import Library, Nobody, Watcher, tcplife, tcpstates, wait_for_events

KERNELS = ("6.12", "6.1")
PHASES = (
    "socket, bind", "connect", "accept", "client sends", "server receives", "server sends", "client receives",
    "client closes", "server closes",
)  # fmt: skip
CONNECTIONS = 1000
CALLS = 200_000

# The numbers of tcpevent.h.
STATES, CLOSES = 1, 2
PROBES = {"kprobe": 1, "tp_btf": 2, "tracepoint": 3}


# How the host of a handle is compiled.
READER = ("reader", "-L", LIBRARY.parent, "-ltcpEvent")


def settle(library, _connections):
    """Returns when no more events come."""
    wait_for_events(library, lambda: False, patience=0.2)


class Handles(Watcher):
    """The library in a host that reads events by a handle, 64 at a time: benches/c/reader.c."""

    settle = settle

    def __init__(self, events, rung):
        kind = "states" if events & STATES else "closes"
        self.name = f"handle, {kind}, {rung}"
        self.command = f"open {events} {PROBES[rung]}"

    def start(self):
        return Child([build(*READER)], environment={**os.environ, "LD_LIBRARY_PATH": str(LIBRARY.parent)})

    def attach(self):
        self.child.ask(self.command, "opened")

    def counts(self):
        return int(self.child.ask("counts", "counts")[0])


class Classic(Library):
    """The six functions. Snapshots are off: they come at intervals of a clock that runs differently here."""

    settle = settle

    def __init__(self, rung, **settings):
        super().__init__(PORT, rung=rung, netlink_interval=0, **settings)
        self.name = f"classic, {rung}" + (", nothing fits" if settings else "")


def watchers(rungs):
    nothing = "sport 1 dport 1"
    yield Nobody()
    for rung in rungs:
        yield Classic(rung)
        yield Handles(CLOSES, rung)
        yield Handles(STATES, rung)
        yield Classic(rung, filter=nothing)
    yield from peers()
    # Once more: what has changed meanwhile is not what was watched.
    yield Nobody()


def peers():
    for peer in (tcplife, tcpstates):
        try:
            yield peer()
        except BenchError as error:
            print(f"missing: {error}", file=sys.stderr)


def measure(watcher):
    with Child([build("phases"), PORT, 0]) as phases, watcher:
        phases.ask(f"pass {CONNECTIONS}", "passed")
        watcher.settle(phases)
        before = watcher.cpu_ns()
        medians = [int(word) for word in phases.ask(f"pass {CONNECTIONS}", "passed")]
        watcher.settle(phases)
        own = (watcher.cpu_ns() - before) / CONNECTIONS
        call = int(phases.ask(f"calls {CALLS}", "called")[0]) / 1000
    return {"name": watcher.name, "phases": medians, "path": sum(medians), "own": own, "call": call}


def here(rungs):
    """All figures of the machine that this runs on."""
    ensure_tracefs()
    results = []
    for watcher in watchers(rungs):
        try:
            results.append(measure(watcher))
        except BenchError as error:
            print(f"{watcher.name}: {error}", file=sys.stderr)
            results.append({"name": watcher.name, "refused": str(error)})
    return results


def table(results):
    """The figures as Markdown, above nobody's."""
    nobody = results[0]
    columns = ["watcher", "path", *PHASES, "own process", "getppid"]
    rows = [columns, ["---"] * len(columns)]
    for result in results:
        if "refused" in result:
            rows.append([result["name"], result["refused"], *[""] * (len(columns) - 2)])
            continue
        figures, sign = [result["path"], *result["phases"]], ","
        if result["name"] != Nobody.name:
            without = [nobody["path"], *nobody["phases"]]
            figures, sign = [with_it - bare for with_it, bare in zip(figures, without)], "+,"
        cells = [format(figure, sign) for figure in figures]
        rows.append([result["name"], *cells, f"{result['own']:,.0f}", f"{result['call']:.0f}"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def under(kernel, rungs):
    """All figures of a kernel, in a virtual machine."""
    output = ROOT / "target" / "cost" / f"{kernel}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.unlink(missing_ok=True)
    command = [ROOT / "tests" / "vm" / "run", kernel, "--count-instructions", "--cpus", "1", "--timeout", "1800", "--"]
    command += [ROOT / "benches" / "cost", "--here", "--rungs", ",".join(rungs), "--json", output]
    ended = subprocess.run([str(word) for word in command], check=False)
    if not output.exists():
        raise BenchError(f"no figures came from kernel {kernel}: tests/vm/run ended with status {ended.returncode}")
    return json.loads(output.read_text(encoding="utf-8"))


def main(arguments):
    parser = argparse.ArgumentParser(prog="benches/cost", description="What watching costs, in instructions.")
    parser.add_argument("--kernels", default=",".join(KERNELS), help="those of tests/vm/run (%(default)s)")
    parser.add_argument("--rungs", default=",".join(PROBES), help="of the library (%(default)s)")
    parser.add_argument("--json", type=pathlib.Path, help="writes the figures there too")
    parser.add_argument("--here", action="store_true", help="on this machine, by its own clock")
    options = parser.parse_args(arguments)
    rungs = options.rungs.split(",")
    if unknown := set(rungs) - set(PROBES):
        parser.error(f"no rung {', '.join(sorted(unknown))}: there are {', '.join(PROBES)}")
    # What is compiled here need not be compiled in the emulator, where that takes minutes.
    for name, *further in (["phases"], ["consumer"], READER):
        build(name, *further)
    try:
        if options.here:
            results = here(rungs)
            print(table(results))
        else:
            results = {kernel: under(kernel, rungs) for kernel in options.kernels.split(",")}
    except BenchError as error:
        print(f"benches/cost: {error}", file=sys.stderr)
        return 1
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0
