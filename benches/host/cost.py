"""What watching costs in instructions: `make cost`.

The machine is emulated, and its clock counts the instructions it executes: a nanosecond is one. So a figure is the same on
whatever host, and from boot to boot to 0.003 %, but for the first pass after a boot, which is not counted. It is a number of
instructions, and no time: what a cache miss or a trap costs does not show.

What is on the path of a connection is told of the thread that makes it: a watcher that is woken takes the only processor
away, and its time is its own.
"""

import argparse
import ctypes
import json
import os
import pathlib
import platform
import re
import subprocess
import sys

from . import report
from .figures import bpf_statistics
from .programs import BUILT, LIBRARY, ROOT, BenchError, Child, build, ensure_tracefs
from .traffic import PORT
from .watchers import Library, Nobody, Watcher, tcplife, tcpstates, wait_for_events

KERNELS = ("6.12", "6.1")
PHASES = (
    "socket, bind", "connect", "accept", "client sends", "server receives", "server sends", "client receives",
    "client closes", "server closes",
)  # fmt: skip
CONNECTIONS = 1000
CALLS = 200_000

# Where a program may see changes of state and accepts, and what an empty one costs there.
EMPTY_HOOKS = (
    "kprobe/tcp_set_state", "kprobe.multi/tcp_set_state", "fentry/tcp_set_state", "fexit/tcp_set_state",
    "tp_btf/inet_sock_set_state", "raw_tp/inet_sock_set_state", "tracepoint/sock/inet_sock_set_state",
    "kprobe/security_sock_graft", "fentry/security_sock_graft", "raw_tp/tcp_destroy_sock",
    "tracepoint/syscalls/sys_exit_accept4",
)  # fmt: skip
# There it hands over a record of each close, too.
RECORDS_HOOK = "tp_btf/inet_sock_set_state"

# What benches/bpf/least.bpf.c knows, by its numbers.
LEAST_MAINS = ("tp_btf", "kprobe")
LEAST_KINDS = ("classic", "closes", "states")

# The figures that a run is compared with, how far above them one may be, and by how many instructions in any case. Those of the
# programs repeat; a phase of a connection takes 142 more or less by the state that the kernel's allocator happens to be in.
COMMITTED = ROOT / "benches" / "cost.json"
ALLOWED = 1.02
SLACK = {"programs": 20, "path": 4 * 142, "getppid": 2}
BOOTS = 2

# The numbers of tcpevent.h.
STATES, CLOSES, RETRIES, UNSENT = 1, 2, 8, 16
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
        names = {STATES: "states", CLOSES: "closes", RETRIES: "retries", UNSENT: "unsent"}
        kinds = " and ".join(name for event, name in names.items() if events & event)
        self.name = f"handle, {kinds}, {rung}"
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


class Programs(Nobody):
    """All programs of an object, each attached where its section says."""

    def __init__(self, name, source, **macros):
        self.name = name
        self.object = build_programs(source, macros)

    def __enter__(self):
        libbpf = self.libbpf = ctypes.CDLL("libbpf.so.1", use_errno=True)
        for name, arguments in (
            ("bpf_object__open", [ctypes.c_char_p]), ("bpf_object__next_program", [ctypes.c_void_p, ctypes.c_void_p]),
            ("bpf_program__attach", [ctypes.c_void_p]),
        ):  # fmt: skip
            function = getattr(libbpf, name)
            function.restype, function.argtypes = ctypes.c_void_p, arguments
        libbpf.bpf_object__load.argtypes = libbpf.bpf_object__close.argtypes = [ctypes.c_void_p]
        libbpf.bpf_link__destroy.argtypes = [ctypes.c_void_p]
        self.opened = self.must("opened", libbpf.bpf_object__open(str(self.object).encode()))
        self.links = []
        try:
            if libbpf.bpf_object__load(self.opened) < 0:
                self.must("loaded", None)
            program = libbpf.bpf_object__next_program(self.opened, None)
            while program:
                self.links.append(self.must("attached", libbpf.bpf_program__attach(program)))
                program = libbpf.bpf_object__next_program(self.opened, program)
        except BenchError:
            self.__exit__()
            raise
        return self

    def must(self, what, result):
        if not result:
            raise BenchError(f"{self.name} is not {what}: {os.strerror(ctypes.get_errno())}")
        return result

    def __exit__(self, *_):
        for link in self.links:
            self.libbpf.bpf_link__destroy(link)
        self.libbpf.bpf_object__close(self.opened)


class EmptyHook(Programs):
    """A program that does nothing: benches/bpf/empty.bpf.c."""

    def __init__(self, section, records=False):
        does = "empty but for a record of each close" if records else "empty"
        super().__init__(f"{does}, {section}", "empty", SECTION=f'"{section}"', **({"RECORDS": 1} if records else {}))


class Least(Programs):
    """The least that tells of connections with their owners: benches/bpf/least.bpf.c."""

    def __init__(self, kind, rung):
        super().__init__(
            f"the least, {kind}, {rung}", "least", KIND=LEAST_KINDS.index(kind), MAIN=LEAST_MAINS.index(rung)
        )


def build_programs(name, macros):
    """The path of an object that benches/bpf has the source of."""
    source = ROOT / "benches" / "bpf" / f"{name}.bpf.c"
    words = (re.sub(r"[^\w.]+", "-", str(value)).strip("-") for value in macros.values())
    output = BUILT / f"{'-'.join((name, *words))}.o"
    if not output.exists() or output.stat().st_mtime < source.stat().st_mtime:
        BUILT.mkdir(parents=True, exist_ok=True)
        options = (f"-D{macro}={value}" for macro, value in macros.items())
        architecture = {"x86_64": "x86", "aarch64": "arm64"}[platform.machine()]
        must_run(
            "clang", "-O2", "-g", "-target", "bpf", f"-D__TARGET_ARCH_{architecture}", *options, "-I", libbpf_headers(),
            "-c", source, "-o", output,
        )  # fmt: skip
    return output


def libbpf_headers():
    """Those that the library is built with."""
    found = sorted((ROOT / "target" / "release" / "build").glob("libbpf-sys-*/out/include"))
    if not found:
        raise BenchError("libbpf's headers are missing: make all")
    return found[-1]


def must_run(*command):
    """Runs a command. Returns what it has printed."""
    try:
        ended = subprocess.run([str(word) for word in command], check=False, capture_output=True, text=True)
    except OSError as error:
        raise BenchError(f"{command[0]} does not start: {error}; is it installed (.ci/setup)?") from error
    if ended.returncode:
        said = (ended.stderr or ended.stdout).strip().splitlines()
        raise BenchError(said[-1] if said else f"{command[0]} has failed, with status {ended.returncode}")
    return ended.stdout


def watchers(rungs, beside):
    nothing = "sport 1 dport 1"
    yield Nobody()
    for rung in rungs:
        yield Classic(rung)
        yield Handles(CLOSES, rung)
        yield Handles(STATES, rung)
        if beside:
            yield Handles(CLOSES | RETRIES, rung)
            yield Handles(CLOSES | UNSENT, rung)
            yield Classic(rung, filter=nothing)
    if beside:
        yield from peers()
        yield from floors()
    # Once more: what has changed meanwhile is not what was watched.
    yield Nobody()


def floors():
    """Programs that do less than any watcher must."""
    yield from map(EmptyHook, EMPTY_HOOKS)
    yield EmptyHook(RECORDS_HOOK, records=True)
    for rung in LEAST_MAINS:
        yield from (Least(kind, rung) for kind in LEAST_KINDS)


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
        # Apart: counting takes instructions, too.
        programs = runs_of_programs(phases) if watcher.name != Nobody.name else {}
    result = {"name": watcher.name, "phases": medians, "path": sum(medians), "own": own, "call": call}
    return {**result, "programs": programs}


def runs_of_programs(phases):
    """Of each BPF program: runs a connection, and instructions a run, with the 50 or so that an empty one is counted for."""
    with bpf_statistics():
        before = counted()
        phases.ask(f"pass {CONNECTIONS}", "passed")
        after = counted()
    programs = {}
    for number, (name, ns, runs) in after.items():
        _, ns_before, runs_before = before.get(number, (name, 0, 0))
        if (more := runs - runs_before) * 10 >= CONNECTIONS:
            programs[name] = {"runs": more / CONNECTIONS, "instructions": (ns - ns_before) / more}
    return programs


def counted():
    """Name, run time and runs of all BPF programs, by ID."""
    programs = json.loads(must_run("bpftool", "-j", "prog", "show"))
    return {
        program["id"]: (program.get("name", "?"), program.get("run_time_ns", 0), program.get("run_cnt", 0))
        for program in programs
    }


def here(rungs, beside):
    """All figures of the machine that this runs on, and the kernel's name."""
    ensure_tracefs()
    results = []
    for watcher in watchers(rungs, beside):
        try:
            results.append(measure(watcher))
        except BenchError as error:
            print(f"{watcher.name}: {error}", file=sys.stderr)
            results.append({"name": watcher.name, "refused": str(error)})
    return {"release": os.uname().release, "watchers": results}


def table(figures):
    """The figures of a kernel as Markdown, above nobody's."""
    results = figures["watchers"]
    nobody = results[0]
    columns = ["watcher", "path", *PHASES, "own process", "getppid", "programs: runs × instructions"]
    rows = [columns, ["---"] * len(columns)]
    for result in results:
        if "refused" in result:
            rows.append([result["name"], result["refused"], *[""] * (len(columns) - 2)])
            continue
        cells = [format(figure, ",") for figure in (result["path"], *result["phases"])]
        if result["name"] != Nobody.name:
            # What it adds to all of a connection, and to each phase.
            figures = zip([result["path"], *result["phases"]], [nobody["path"], *nobody["phases"]])
            cells = [format(with_it - without, "+,") for with_it, without in figures]
        rows.append([result["name"], *cells, f"{result['own']:,.0f}", f"{result['call']:.0f}", report.runs_of(result)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def columns(figures):
    """Each figure that is compared, by watcher and column. Raises BenchError where a watcher was refused."""
    bare, named = figures["watchers"][0], {}
    for result in figures["watchers"]:
        if "refused" in result:
            raise BenchError(f"{result['name']}: {result['refused']}")
        programs = sum(seen["runs"] * seen["instructions"] for seen in result["programs"].values())
        values = {"programs": programs, "path": result["path"] - bare["path"], "getppid": result["call"]}
        named.update({(result["name"], column): value for column, value in values.items()})
    return named


def check(kernels, rungs, beside):
    """A line for each figure that is above the committed one of this very kernel, in each of some boots."""
    lines = []
    all_committed = json.loads(COMMITTED.read_text(encoding="utf-8"))
    for kernel in kernels:
        committed = all_committed.get(kernel, {"release": None, "watchers": []})
        watched = [seen for seen in committed["watchers"] if "refused" not in seen]
        before = columns({"watchers": watched}) if watched else {}
        least = {}
        for _ in range(BOOTS):
            figures = under(kernel, rungs, beside)
            if figures["release"] != committed["release"]:
                print(f"not compared: {figures['release']} is not the {committed['release']} of {COMMITTED.name}")
                break
            for place, value in columns(figures).items():
                least[place] = min(value, least.get(place, value))
            above = {
                place: (value, before[place])
                for place, value in least.items()
                if place in before and value > max(before[place], 0) * ALLOWED + SLACK[place[1]]
            }
            if not above:
                break
            print(f"above the committed ones: {len(above)} of {len(least)} figures")
        else:
            lines += [
                f"{kernel}, {name}: {column} is {now:,.0f}, more than 2 % above {then:,.0f}"
                for (name, column), (now, then) in above.items()
            ]
    return lines


def under(kernel, rungs, beside):
    """All figures of a kernel, in a virtual machine. They come on its output: what it writes to a tree in /tmp stays there."""
    command = [ROOT / "tests" / "vm" / "run", kernel, "--count-instructions", "--cpus", "1", "--timeout", "1800", "--"]
    command += [ROOT / "benches" / "cost", "--here", "--rungs", ",".join(rungs), "--json", "-"]
    if not beside:
        command += ["--alone"]
    ended = subprocess.run([str(word) for word in command], check=False, stdout=subprocess.PIPE, text=True)
    *said, last = ended.stdout.splitlines() or [""]
    print("\n".join(said), flush=True)
    try:
        return json.loads(last)
    except json.JSONDecodeError as error:
        status = ended.returncode
        raise BenchError(f"no figures came from kernel {kernel}: tests/vm/run ended with status {status}") from error


def main(arguments):
    parser = argparse.ArgumentParser(prog="benches/cost", description="What watching costs, in instructions.")
    parser.add_argument("--kernels", default=",".join(KERNELS), help="those of tests/vm/run (%(default)s)")
    parser.add_argument("--rungs", default=",".join(PROBES), help="of the library (%(default)s)")
    parser.add_argument("--json", type=pathlib.Path, help="writes the figures there too (-: to stdout, in a line)")
    parser.add_argument("--alone", action="store_true", help="without peers, empty hooks and filters")
    parser.add_argument("--check", action="store_true", help=f"fails where a figure is above that of {COMMITTED.name}")
    parser.add_argument("--write", action="store_true", help=f"writes {COMMITTED.name} and its part of BENCHMARKS.md")
    parser.add_argument("--here", action="store_true", help="on this machine, by its own clock")
    options = parser.parse_args(arguments)
    rungs = options.rungs.split(",")
    if unknown := set(rungs) - set(PROBES):
        parser.error(f"no rung {', '.join(sorted(unknown))}: there are {', '.join(PROBES)}")
    # What is compiled here need not be compiled in the emulator, where that takes minutes.
    try:
        for name, *further in (["phases"], ["consumer"], READER):
            build(name, *further)
        if not options.alone:
            list(floors())
        if options.here:
            results = here(rungs, not options.alone)
            print(table(results))
        elif options.check:
            above = check(options.kernels.split(","), rungs, not options.alone)
            for line in above:
                print(f"benches/cost: {line}; if it must be, make cost COST=--write", file=sys.stderr)
            return 1 if above else 0
        else:
            kernels = options.kernels.split(",")
            results = {kernel: under(kernel, rungs, not options.alone) for kernel in kernels}
    except BenchError as error:
        print(f"benches/cost: {error}", file=sys.stderr)
        return 1
    if options.json == pathlib.Path("-"):
        print(json.dumps(results), flush=True)
    elif options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if options.write:
        COMMITTED.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        report.put_instructions(results)
    return 0
