"""BENCHMARKS.md, from the results of a run and of others to compare with."""

import json
import statistics

from . import machine, plot, rows
from .programs import ROOT

REPORT = ROOT / "BENCHMARKS.md"
PLOT = ROOT / "benches" / "cost.svg"

HOW = """## How it is measured

- **Rounds.** Each round has everything in it that is compared, in turning order. A value is the median over the
  rounds, the spread their least and greatest. A ratio is that of two medians of the same run.
- **A short connection** has its client in one process and its server in another, each on a processor of its own, in
  a network namespace that is made for the round: connect, 100 bytes to the server, 100 bytes back, the server closes,
  the client closes; then the next one. It ends twice and changes its state ten times.
- **Rate lost**: connections a second, against those of the rounds right before and after in which nobody watches. Most
  of a connection's time is then the waking of the other process on its processor; a watcher that runs now and then keeps
  that from sleeping deeply, which in a virtual machine can be worth more than the watcher costs (a loss below 0). With
  both ends on one processor nobody sleeps, and a connection takes half the time: there all of the cost is seen.
- **In pairs**: one thread makes both ends of 1,000 connections, and counts its own CPU time, phase by phase, of which the medians
  count. Four such batches follow one another within a second, of which the middle two are watched, by a process on the other
  processor; 40 such pairs, of which the median counts.
- **Watchers.** The library runs in a process that calls `DequeuePerfEvent` in one thread and counts
  (`benches/c/consumer.c`); all its settings are the defaults. `tcplife` and `tcpstates` run without options, and write
  their lines to a file in memory. So their figures hold the printing of a line, and the library's the making of the
  addresses' text. What each has told of is counted: the notes below say what was lost.
- **BPF time** is `run_time_ns` of all BPF programs that the process holds (as `bpftool prog show` tells it), over the
  connections of the round. Only these rounds run with `kernel.bpf_stats_enabled`, which takes time itself.
- **CPU time** of processes and threads is that of `/proc/PID/task/TID/schedstat`; of `ss`, `wait4`'s, user and system.
- **Delivery** is from `EventTime` to the return of `DequeuePerfEvent`. On a quiet host 50 connections end a second.
- **Wake-ups** are the voluntary context switches of all threads, while no connection begins or ends.
- **Sweeps**: the thread `tcpevent-sweep`, without a probe, and `ss -tinpH` with its output to /dev/null, by turns, in a
  network namespace with these sockets only.
- **Throughput**: a queue is filled with snapshots until it refuses one; sweeps end; then threads empty it.
- **Connections alive** have one end here and none elsewhere: opened in the kernel's repair mode.
- **Memory** is `Rss` of `/proc/PID/smaps_rollup`, after the load; the most, `VmHWM`. The library's is what its process
  has more than before it loaded it.
- **A system call** is `getppid`, of a process that has to do with nothing else: the best of five times 200,000.
"""


# QEMU's name for an emulated processor.
EMULATED = "TCG"
ABOUT_EMULATION = """The processor is emulated, instruction by instruction: no time here, and no ratio of times, is a
real one's. What it shows is that all works by these probes, and what is lost: counts of events and wake-ups."""


# Where the figures of `make cost` are, which have a program of their own.
INSTRUCTIONS = ROOT / "benches" / "cost.json"
BEGINS = "<!-- make cost COST=--write writes from here -->"
ENDS = "<!-- to here -->"
ABOUT_INSTRUCTIONS = """What watching adds to a short connection whose both ends one thread makes (socket, bind, connect, accept, 100
bytes either way, two closes), in instructions: counted by an emulator whose clock they are (`make cost`), so that the figures are
the same on every machine. They count no cache misses and no traps. `path` is on the connection's thread; `own process`, all that
the watcher's process does for a connection, of which there are two events or, for states, ten; `getppid`, a system call that has
nothing to do with TCP. A program is counted with the 50 that an empty one takes for being counted. Where each event wakes the
watcher, as the plain tracepoint's do, the kernel leaves part of a connection's work to other threads, and `path` shows too little.

Some rows are no watchers, but what a watcher cannot go below: `empty` programs, and `the least` that tells of the same with an owner
(`benches/bpf/least.bpf.c`): it reads every fact once, gives an owner one place that others take from it, and omits each check that
makes the answer right where sockets share a place, a process executes another program, the kernel's own threads or MPTCP act, or
the kernel has skipped a program.
"""


def runs_of(watcher):
    """Its BPF programs: runs a connection, and instructions a run."""
    programs = sorted(watcher["programs"].items())
    return ", ".join(f"`{name}` {seen['runs']:.3g} × {seen['instructions']:.0f}" for name, seen in programs)


def instructions(kernels):
    """The part of the report with what `make cost` has counted."""
    lines = [BEGINS, "", "## Instructions", "", ABOUT_INSTRUCTIONS]
    for figures in kernels.values():
        nobody = figures["watchers"][0]
        lines += [
            f"Linux {figures['release']}; a connection takes {nobody['path']:,} while nobody watches, and `getppid` "
            f"{nobody['call']:.0f}:",
            "",
            "| watcher | path | of it, accept | own process | getppid | programs: runs a connection × instructions |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for seen in figures["watchers"][1:-1]:
            if "refused" in seen:
                lines.append(f"| {seen['name']} | {seen['refused']} | | | | |")
                continue
            # The third phase.
            path, accept = seen["path"] - nobody["path"], seen["phases"][2] - nobody["phases"][2]
            own = "" if seen["name"].startswith("empty") else f"{seen['own']:,.0f}"
            lines.append(f"| {seen['name']} | {path:+,} | {accept:+,} | {own} | {seen['call']:.0f} | {runs_of(seen)} |")
        lines.append("")
    return "\n".join([*lines, ENDS])


def put_instructions(kernels):
    """Writes that part anew, and leaves the rest."""
    before, _, rest = REPORT.read_text(encoding="utf-8").partition(BEGINS)
    _, _, after = rest.partition(ENDS)
    REPORT.write_text(before + instructions(kernels) + after, encoding="utf-8")


def write(result, beside):
    """Writes both files."""
    REPORT.write_text(text(result, beside), encoding="utf-8")
    lines = result["figures"].get("cost", {}).get("lines")
    if lines:
        PLOT.write_text(plot.draw(lines, result["machine"]), encoding="utf-8")


def text(result, beside):
    parts = [
        "# Benchmarks\n",
        "What watching costs, and how fast events come. Written by `make bench`: do not edit.\n",
        section(result, "Figures"),
        instructions(json.loads(INSTRUCTIONS.read_text(encoding="utf-8"))) + "\n",
        tools(result),
    ]
    if result["figures"].get("cost", {}).get("lines"):
        parts += [
            "## Cost against load\n",
            "![CPU time against connections a second](benches/cost.svg)\n",
            points(result["figures"]["cost"]["lines"]),
        ]
    for other in beside:
        parts += [section(other, f"Another machine: Linux {other['machine']['kernel']}"), tools(other)]
    parts.append(HOW)
    return "\n".join(parts)


def section(result, title):
    options = result["options"]
    lines = [f"## {title}\n", "| | |", "| --- | --- |"]
    lines += [f"| {what} | {value} |" for what, value in machine.lines(result["machine"])]
    lines += [f"| run | rounds: {options['rounds']}; connections in each: {options['connections']:,} |", ""]
    if EMULATED in result["machine"]["processor"]:
        lines += [ABOUT_EMULATION, ""]
    lines += rows.markdown([rows.Row(**fields(row)) for row in result["rows"]])
    lines.append("")
    for figure, seen in result["figures"].items():
        lines += [f"- {figure}: {note}" for note in seen.get("notes", [])]
    if lines[-1]:
        lines.append("")
    return "\n".join(lines)


def fields(row):
    """The row without values computed from others."""
    return {name: value for name, value in row.items() if name not in ("value", "peer_value", "ratio", "met")}


def tools(result):
    """All watchers side by side, in absolute figures."""
    load, bpf = (result["figures"].get(name, {}).get("rounds", {}) for name in ("load", "bpf"))
    if not load:
        return ""
    lines = [
        "| watcher | connections/s | rate lost | CPU of its process | BPF time | events lost |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, rounds in load.items():

        def median(key, of=rounds):
            values = [one[key] for one in of if key in one]
            return statistics.median(values) if values else None

        def cell(value, unit):
            return f"{rows.amount(value)} {unit}" if value is not None else ""

        shown = f"libtcpEvent, {name}" if name in ("kprobe", "tp_btf") else name
        lost = median("lost_share")
        lines.append(
            "| "
            + " | ".join(
                [
                    shown,
                    rows.amount(median("rate")),
                    cell(median("loss"), "%"),
                    cell(median("cpu_us") or None, "us a connection"),
                    cell(median("bpf_us", bpf.get(name, [])), "us a connection"),
                    cell(100 * lost if lost is not None else None, "%"),
                ]
            )
            + " |"
        )
    return "\n".join(lines) + "\n"


def points(lines):
    out = ["| watcher | connections/s: CPU time, % of one processor |", "| --- | --- |"]
    for name, values in lines.items():
        out.append(f"| {name} | " + ", ".join(f"{x:,.0f}: {rows.amount(y)}" for x, y in values) + " |")
    return "\n".join(out) + "\n"
