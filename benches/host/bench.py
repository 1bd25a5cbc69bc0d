"""The command."""

import argparse
import json
import os
import pathlib
import signal
import sys
import time

from . import figures, machine, report, rows
from .programs import LIBRARY, BenchError, build, ensure_tracefs
from .watchers import rungs, tcplife, tcpstates


class Bench:
    """Settings of the figures."""

    def __init__(self, options):
        self.quick = options.quick
        self.rounds = options.rounds
        self.connections = options.connections
        self.sockets = options.sockets
        self.processes = options.processes
        self.most = options.most
        self.sweep_interval = options.sweep_interval
        self.processors = len(os.sched_getaffinity(0))
        self.rungs = rungs()
        self.began = time.monotonic()

    @property
    def slots(self):
        """Slots of a queue that holds a sweep of all sockets."""
        return min(2 * self.sockets, 1 << 20)

    def working_rungs(self):
        return [rung for rung, refusal in self.rungs.items() if refusal is None]

    def progress(self, words):
        print(f"{time.monotonic() - self.began:6.1f} s    {words}", file=sys.stderr, flush=True)


def number(least, most):
    def parse(text):
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{value} is not from {least} to {most}")
        return value

    return parse


def arguments(words):
    parser = argparse.ArgumentParser(
        prog="benches/run",
        description="Measures what watching costs, beside libbpf-tools and ss. As root.",
        epilog="Figures: "
        + "; ".join(
            f"{name} ({' '.join(function.__doc__.split()).split('. ')[0].rstrip('.')})"
            for name, function in figures.FIGURES.items()
        ),
    )
    parser.add_argument("--rounds", type=number(1, 1000), help="rounds of each comparison (8; quick: 2)")
    parser.add_argument("--connections", type=number(400, 1_000_000), help="in a round (20000; quick: 4000)")
    parser.add_argument("--sockets", type=number(20, 500_000), help="in a sweep (20000; quick: 4000)")
    parser.add_argument("--processes", type=number(2, 10_000), help="that hold them (200)")
    parser.add_argument(
        "--most",
        type=number(2000, 120_000),
        metavar="SOCKETS",
        help="the most that are open at once, a multiple of 2000 (100000; quick: 20000)",
    )
    parser.add_argument(
        "--sweep-interval",
        type=float,
        default=2.0,
        metavar="SECONDS",
        help="from sweep to sweep: longer than a sweep and ss take together (2)",
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=figures.FIGURES,
        metavar="FIGURE",
        help="this figure alone; may be given again",
    )
    parser.add_argument("--quick", action="store_true", help="a small run, to see that all works")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write all values there")
    parser.add_argument("--write-report", action="store_true", help="write BENCHMARKS.md and benches/cost.svg")
    parser.add_argument(
        "--beside",
        type=pathlib.Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a file of --json, of another machine, for a table of its own in the report; may be given again",
    )
    options = parser.parse_args(words)
    for name, full, quick in (
        ("rounds", 8, 2),
        ("connections", 20_000, 4_000),
        ("sockets", 20_000, 4_000),
        ("processes", 200, 200),
        ("most", 100_000, 20_000),
    ):
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else full)
    if options.processes % 2 or options.sockets % options.processes:
        parser.error(
            f"--sockets {options.sockets} --processes {options.processes}: the processes must be even in "
            "number, and hold equally many"
        )
    if options.most % 2000:
        parser.error(f"--most {options.most} is not a multiple of 2000")
    if options.write_report and options.only:
        parser.error("--write-report is for a run of all figures: leave --only out")
    return options


def check():
    """Checks for what would fail later, and less clearly."""
    if os.geteuid() != 0:
        raise BenchError("needs root: BPF programs, network namespaces and sysctls are measured with")
    if not LIBRARY.exists():
        raise BenchError(f"{LIBRARY} is missing: run make")
    ensure_tracefs()
    tcplife()
    tcpstates()
    figures.ss()
    for name in ("connections", "consumer", "sockets", "syscalls"):
        build(name)


def end(*_):
    raise KeyboardInterrupt


def measure(options):
    check()
    result = {
        "machine": machine.describe(),
        "options": {name: value for name, value in vars(options).items() if isinstance(value, (int, float))},
        "rows": [],
        "figures": {},
        "failed": [],
    }
    bench = Bench(options)
    for rung, refusal in bench.rungs.items():
        bench.progress(f"{rung}: {refusal or 'works'}")
    if not bench.working_rungs():
        raise BenchError("the library does not start on this kernel")
    table = []
    for name in options.only or figures.FIGURES:
        print(f"{time.monotonic() - bench.began:6.1f} s  {name}", file=sys.stderr, flush=True)
        try:
            found, result["figures"][name] = figures.FIGURES[name](bench)
        except BenchError as error:
            found = [rows.Row(name, missing=str(error))]
            if not (name == "together" and bench.processors < 2):
                result["failed"].append(name)
        table += found
    result["rows"] = [row.as_json() for row in table]
    result["seconds"] = time.monotonic() - bench.began
    return result, table


def main(words):
    options = arguments(words)
    for number_of_signal in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number_of_signal, end)
    try:
        beside = [json.loads(path.read_text(encoding="utf-8")) for path in options.beside]
        result, table = measure(options)
        if table:
            print("\n".join(rows.table(table)))
        if options.json:
            options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        if options.write_report:
            report.write(result, beside)
            print(f"wrote {report.REPORT} and {report.PLOT}", file=sys.stderr)
    except (BenchError, OSError, ValueError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: ended by a signal", file=sys.stderr)
        return 130
    if result["failed"]:
        print(f"bench: not measured: {', '.join(result['failed'])}", file=sys.stderr)
        return 1
    return 0
