"""The command."""

import argparse
import os
import pathlib
import signal
import sys
import time

from . import results
from .guest import PROGRAMS, QUICK, WAYS
from .machines import HERE, ROOT, Machine, MatrixError, kernels, live_tests

RUNGS = ("kprobe", "tp_btf", "tracepoint")


def arguments(words, known):
    parser = argparse.ArgumentParser(
        prog="tests/vm/matrix",
        description="Runs the live tests under this machine's kernel and those that "
        "tests/vm/run knows, by each rung in turn, with the kernel's type information shown, hidden, and in a file that "
        "TCPEVENT_BTF names. As root, after make and a build of the live tests: make test-kernels does that too.",
    )
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help=f"{', '.join(known)} (all)")
    parser.add_argument(
        "--only", action="append", metavar="GROUP", help="this module of tests/live alone; may be given again"
    )
    parser.add_argument("--quick", action="store_true", help=f"{' and '.join(QUICK)} only, to see that all works")
    parser.add_argument(
        "--all",
        action="store_true",
        help="also the groups that hang on no kernel; else what a way or a rung shares with another "
        f"one has {' and '.join(QUICK)} only, and others {', '.join(PROGRAMS)}",
    )
    parser.add_argument("--rung", action="append", choices=RUNGS, help="this rung alone; may be given again")
    parser.add_argument(
        "--btf", action="append", choices=WAYS, help="type information in this way alone; may be given again"
    )
    parser.add_argument(
        "--json",
        type=pathlib.Path,
        metavar="FILE",
        help="keep what was found there; kernels that are not run this time stay in it",
    )
    parser.add_argument("--write-table", action="store_true", help="put the table into docs/kernels.md")
    parser.add_argument("--no-run", action="store_true", help="run nothing: show what --json has")
    options = parser.parse_args(words)
    for kernel in options.kernels:
        if kernel not in known:
            parser.error(f"unknown kernel {kernel}; known are {', '.join(known)}")
    if options.no_run and not options.json:
        parser.error("--no-run shows what --json FILE has")
    if options.write_table and (options.only or options.rung or options.btf):
        parser.error("--write-table is for all groups, rungs and ways: leave --only, --rung and --btf out")
    return options


def check():
    """Checks for what would fail later, and less clearly."""
    if os.geteuid() != 0:
        raise MatrixError("needs root: BPF programs, mount namespaces")
    live_tests()


def end(*_):
    raise KeyboardInterrupt


def run(options, found):
    check()
    began = time.monotonic()

    def progress(words):
        print(f"{time.monotonic() - began:7.1f} s  {words}", file=sys.stderr, flush=True)

    order = {
        "rungs": options.rung or RUNGS,
        "btf": options.btf or WAYS,
        "all": options.all,
        "groups": options.only or (list(QUICK) if options.quick else None),
    }
    for kernel in options.kernels:
        found[kernel] = Machine(kernel, order, progress).examine()
        progress(f"{kernel}: {found[kernel]['seconds']} s")
        if options.json:
            results.save(options.json, found)


def is_good(found):
    """Whether no test has failed."""
    return not any("groups" in entry and results.counts(entry)[1] for one in found for entry in one["rungs"])


def main(words):
    for number_of_signal in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number_of_signal, end)
    try:
        known = [HERE, *kernels()]
        options = arguments(words, known)
        options.kernels = options.kernels or known
        found = results.load(options.json)
        if not options.no_run:
            run(options, found)
        shown = results.in_order(found, known if options.no_run or options.write_table else options.kernels)
        print(results.table(shown))
        if options.write_table:
            results.write_table(ROOT / "docs/kernels.md", results.markdown(shown, RUNGS))
    except (MatrixError, OSError, ValueError) as error:
        print(f"matrix: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("matrix: ended by a signal", file=sys.stderr)
        return 130
    return 0 if is_good(shown) else 1
