#!/usr/bin/python3
"""Runs under the kernel in question, as root: tries each rung, and runs the live tests if it works.

Its argument is a JSON object: `library` and `tests` (paths), `rungs`, `btf` (sources of the kernel's type
information, of WAYS), `groups` (modules of the live tests; null for those of PROGRAMS if the source matters,
otherwise those of QUICK), `all` (modules: all if the source matters), `limit` (seconds for a group), `btf_files` (a
folder that has RELEASE.btf for kernels without type information), and `done` (earlier results to skip, as lists of
way, rung and group).

Each result is a line of JSON after MARK; all other lines are the tests' own. A start is reported too, to show during
which test a kernel died.
"""

import contextlib
import ctypes
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

MARK = "matrix: "
KERNEL_BTF = pathlib.Path("/sys/kernel/btf/vmlinux")

# How a program gets the kernel's type information: from the kernel; not at all; from a file that TCPEVENT_BTF names,
# while the kernel shows none.
SHOWN, HIDDEN, FILE = WAYS = ("shown", "hidden", "file")

# Kernel-dependent tests: of what the programs do, not of what the library makes of it.
PROGRAMS = (
    "api_closes",
    "api_places",
    "api_states",
    "closes",
    "containers",
    "endpoints",
    "old_kernel",
    "owners",
    "truth",
)

# A short group of each interface, which still covers nearly everything that a kernel can do differently.
QUICK = ("closes", "api_states")

# Seconds for a start. Under emulation it takes several.
START_LIMIT = 120


def say(**found):
    print(MARK + json.dumps(found), flush=True)


class Way:
    """Runs programs with a certain source of the kernel's type information."""

    def __init__(self, name, folder, btf_files):
        self.name = name
        self.empty = folder / "empty"
        self.missing = None
        self.variables = {}
        if name == FILE:
            file = folder / "kernel.btf"
            theirs = btf_files / f"{os.uname().release}.btf"
            source = KERNEL_BTF if KERNEL_BTF.exists() else theirs
            if source.exists():
                shutil.copyfile(source, file)
                # The second is for tests of the tcpevent_* functions, which do not read the environment.
                self.variables = {"TCPEVENT_BTF": str(file), "TCPEVENT_TEST_BTF": str(file)}
            else:
                self.missing = f"the kernel has no type information, and there is no {theirs}"

    def command(self, words):
        if self.name == SHOWN or not KERNEL_BTF.parent.exists():
            return words
        return ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /sys/kernel/btf && exec "$@"', self.empty, *words]

    def environment(self, rung):
        return {**os.environ, **self.variables, "TCPEVENT_PROBE": rung}


def run(words, environment, limit):
    """Returns the status (None: it took too long) and the lines, which are also printed."""
    process = subprocess.Popen(
        [str(word) for word in words],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    late = False

    def end(*_):
        nonlocal late
        late = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    signal.signal(signal.SIGALRM, end)
    signal.alarm(limit)
    lines = []
    for line in process.stdout:
        text = line.decode(errors="backslashreplace").rstrip("\n")
        lines.append(text)
        print(text, flush=True)
    process.wait()
    signal.alarm(0)
    # Children of a failed test.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    return None if late else process.returncode, lines


def is_its_own(way, rung):
    """Whether all tests are worth their time. The plain tracepoint is for kernels without types, and uses none; for the
    other rungs, types from a file are the same as the kernel's."""
    return way.name == (HIDDEN if rung == "tracepoint" else SHOWN)


def refusal(way, rung, library):
    """None if the rung works, otherwise the library's line that says why not."""
    words = way.command([sys.executable, __file__, "--start", library])
    status, lines = run(words, {**way.environment(rung), "TCPEVENT_LOG": "error"}, START_LIMIT)
    if status == 0:
        return None
    if status is None:
        return f"a start took more than {START_LIMIT} s"
    return lines[-1] if lines else f"a start ended with status {status}"


def start(library):
    """A consumer that starts and stops. If the start fails, the library ends the process."""
    library = ctypes.CDLL(library)
    library.AddProbe(None)
    while not library.getStatus():
        time.sleep(0.01)
    library.cleanup()
    while library.getStatus():
        time.sleep(0.01)


def tests_of(binary, wanted):
    """Groups (the live tests' modules) and their tests."""
    listed = subprocess.run([binary, "--list", "--format", "terse"], check=True, text=True, capture_output=True)
    groups = {}
    for line in listed.stdout.splitlines():
        test, colon, _ = line.rpartition(": test")
        group = test.split("::")[0]
        if colon and (wanted is None or group in wanted):
            groups.setdefault(group, []).append(test)
    return groups


def outcome(way, rung, binary, tests, limit):
    """Runs a group. Returns how many tests passed, those that failed, and how long it took."""
    began = time.monotonic()
    status, lines = run(way.command([binary, "--exact", *tests]), way.environment(rung), limit)
    if any(line.startswith("test result: ") for line in lines):
        # The last list of all: output of a test's children may stand between "test NAME ..." and "ok".
        last = len(lines) - lines[::-1].index("failures:") if "failures:" in lines else len(lines)
        failed = [test for test in tests if f"    {test}" in lines[last:]]
    else:
        failed = [test for test in tests if not any(re.fullmatch(rf"test {test} \.\.\. .*ok", line) for line in lines)]
    found = {"passed": len(tests) - len(failed), "failed": failed, "seconds": round(time.monotonic() - began, 1)}
    if status is None:
        found["why"] = f"took more than {limit} s"
    elif status < 0:
        found["why"] = f"ended by signal {-status}"
    return found


def main(order):
    done = {tuple(item) for item in order["done"]}
    groups = tests_of(order["tests"], order["groups"])
    folder = pathlib.Path(tempfile.mkdtemp(prefix="tcpevent-matrix."))
    folder.chmod(0o755)  # some tests run as another user
    (folder / "empty").mkdir()
    try:
        say(release=os.uname().release, has_btf=KERNEL_BTF.exists(), groups=list(groups))
        ways = order["btf"]
        if not KERNEL_BTF.exists():
            # Nothing to show, nor to hide.
            ways = dict.fromkeys(HIDDEN if name == SHOWN else name for name in ways)
        for name in ways:
            way = Way(name, folder, pathlib.Path(order["btf_files"]))
            for rung in order["rungs"]:
                key = {"btf": name, "rung": rung}
                if (name, rung, None) not in done:
                    say(**key, begun=None)
                    why = way.missing or refusal(way, rung, order["library"])
                    say(**key, missing=way.missing is not None, refused=why)
                    if why is not None:
                        continue
                of_way = PROGRAMS if is_its_own(way, rung) else QUICK
                for group, tests in groups.items():
                    wanted = order["groups"] or group in of_way or (order["all"] and is_its_own(way, rung))
                    if wanted and (name, rung, group) not in done:
                        say(**key, begun=group)
                        say(**key, group=group, **outcome(way, rung, order["tests"], tests, order["limit"]))
        say(end=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    if sys.argv[1] == "--start":
        start(sys.argv[2])
    else:
        main(json.loads(sys.argv[1]))
