"""Runs ./guest.py under a kernel, and gathers what it finds."""

import contextlib
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import time

from .guest import MARK

ROOT = pathlib.Path(__file__).resolve().parents[3]
RUN = ROOT / "tests" / "vm" / "run"
GUEST = ROOT / "tests" / "vm" / "rungs" / "guest.py"
LIBRARY = ROOT / "target" / "release" / "libtcpEvent.so"
KEPT = ROOT / "target" / "vm"

# This machine's own kernel.
HERE = "here"

# How much slower than a real machine an emulated one is assumed to be: as in tests/vm.rs.
SLOWNESS = 8
# Seconds for a group of tests.
LIMIT_HERE, LIMIT_THERE = 300, 900
# Seconds for a machine to boot, or to end.
BOOT_LIMIT = 300
# A machine that dies is booted again for the rest.
MOST_BOOTS = 6


class MatrixError(Exception):
    """The reason why the matrix cannot run, in one line with the remedy."""


def kernels():
    """The kernels that ./run knows."""
    return subprocess.run([RUN, "--list"], check=True, text=True, capture_output=True).stdout.split()


def live_tests():
    """The newest build of the live tests."""
    folder = ROOT / os.environ.get("CARGO_TARGET_DIR", "target") / "tests" / "deps"
    built = [path for path in folder.glob("live-*") if not path.suffix]
    if not built or not LIBRARY.exists():
        raise MatrixError("the live tests or the library are not built: run make test-kernels")
    return max(built, key=lambda path: path.stat().st_mtime)


class Machine:
    """A kernel, and the results of the library under it."""

    def __init__(self, kernel, order, progress):
        self.kernel = kernel
        self.order = order
        self.progress = progress
        self.log = KEPT / "matrix" / f"{kernel}.log"
        self.found = {"kernel": kernel, "rungs": []}
        self.groups = []
        self.done = set()
        self.begun = None
        self.ended = False

    def command(self):
        order = dict(
            self.order,
            library=str(LIBRARY),
            tests=str(live_tests()),
            btf_files=str(KEPT / "btf"),
            limit=LIMIT_HERE if self.kernel == HERE else LIMIT_THERE,
            done=sorted(self.done, key=str),
        )
        guest = [sys.executable, GUEST, json.dumps(order)]
        if self.kernel == HERE:
            return guest
        # One processor, as in tests/vm.rs. A hang shows as silence.
        return [RUN, self.kernel, "--cpus", "1", "--timeout", "86400", "--", *guest]

    def fetch(self):
        """None, or why the kernel is unavailable."""
        if self.kernel == HERE:
            return None
        fetched = subprocess.run([RUN, "--fetch", self.kernel], text=True, capture_output=True, check=False)
        if fetched.returncode == 0:
            return None
        lines = [line for line in fetched.stderr.splitlines() if line.startswith("tests/vm/run: ")]
        return lines[-1].removeprefix("tests/vm/run: ") if lines else f"tests/vm/run --fetch failed: {fetched.stderr}"

    def examine(self):
        began = time.monotonic()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        why = self.fetch()
        with self.log.open("wb") as log:
            boots = 0
            while why is None and not self.ended:
                boots += 1
                known = len(self.done)
                death = self.run(log)
                if not self.ended and self.begun is None:
                    why = f"does not boot: {death}"
                elif not self.ended:
                    self.died(death)
                    if len(self.done) == known or boots == MOST_BOOTS:
                        why = f"ended {boots} times, the last time: {death}"
        if why is not None:
            self.found["untested"] = why
            self.progress(f"{self.kernel}: untested: {why}")
        self.found["seconds"] = round(time.monotonic() - began)
        return self.found

    def run(self, log):
        """One boot. Returns why it ended, which matters if it did not finish."""
        self.begun = None
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TCPEVENT_")}
        environment["TCPEVENT_TEST_SLOWNESS"] = "1" if self.kernel == HERE else str(SLOWNESS)
        process = subprocess.Popen(
            [str(word) for word in self.command()],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        os.set_blocking(process.stderr.fileno(), False)
        silence = BOOT_LIMIT + (LIMIT_HERE if self.kernel == HERE else LIMIT_THERE)
        errors, pending = b"", b""
        open_pipes = {process.stdout, process.stderr}
        hung = False
        try:
            while open_pipes:
                ready = select.select(list(open_pipes), [], [], BOOT_LIMIT if self.begun is None else silence)[0]
                if not ready:
                    hung = True
                    break
                for pipe in ready:
                    data = os.read(pipe.fileno(), 65536)
                    log.write(data)
                    if not data:
                        open_pipes.discard(pipe)
                    elif pipe is process.stderr:
                        errors += data
                    else:
                        *lines, pending = (pending + data).split(b"\n")
                        for line in lines:
                            self.take(line.decode(errors="backslashreplace"))
        finally:
            self.finish(process)
        if hung:
            return "nothing came of it any more"
        said = [line for line in errors.decode(errors="backslashreplace").splitlines() if line.strip()]
        return said[-1] if said else f"ended with status {process.returncode}"

    @staticmethod
    def finish(process):
        """run takes its machine down with it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        process.stdout.close()
        process.stderr.close()

    def take(self, line):
        """Handles a line from the guest."""
        # A test's unfinished line may precede it.
        _, mark, text = line.partition(MARK)
        if not mark:
            return
        try:
            said = json.loads(text)
        except ValueError:
            return
        if "release" in said:
            self.found["release"], self.found["btf"] = said["release"], said["has_btf"]
            self.groups = said["groups"]
            self.begun = ()
        elif "end" in said:
            self.ended = True
        elif "begun" in said:
            self.begun = (said["btf"], said["rung"], said["begun"])
        elif "group" in said:
            self.note_group(
                said["btf"],
                said["rung"],
                said["group"],
                {name: said[name] for name in ("passed", "failed", "seconds", "why") if name in said},
            )
        else:
            self.note_start(said["btf"], said["rung"], said["refused"], said["missing"])

    def note_start(self, btf, rung, refused, missing=False):
        name = "untested" if missing else "refused"
        self.found["rungs"].append({"btf": btf, "rung": rung, **({name: refused} if refused else {"groups": {}})})
        self.done.add((btf, rung, None))
        if refused:
            self.done.update((btf, rung, group) for group in self.groups)
        self.progress(f"{self.kernel}, BTF {btf}, {rung}: {f'{name}: {refused}' if refused else 'holds'}")

    def note_group(self, btf, rung, group, outcome):
        for entry in self.found["rungs"]:
            if (entry["btf"], entry["rung"]) == (btf, rung):
                entry["groups"][group] = outcome
        self.done.add((btf, rung, group))
        failed = f", failed {len(outcome['failed'])} ({', '.join(outcome['failed'])})" if outcome["failed"] else ""
        why = f": {outcome['why']}" if "why" in outcome else ""
        self.progress(f"{self.kernel}, BTF {btf}, {rung}, {group}: passed {outcome['passed']}{failed}{why}")

    def died(self, death):
        """Records a crash during a test."""
        if len(self.begun) == 3 and self.begun not in self.done:
            btf, rung, group = self.begun
            if group is None:
                self.note_start(btf, rung, f"the machine died of it: {death}")
            else:
                self.note_group(
                    btf,
                    rung,
                    group,
                    {"passed": 0, "failed": [f"{group}::*"], "seconds": 0, "why": f"the machine died of it: {death}"},
                )
