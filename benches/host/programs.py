"""Child processes: the C programs of ../c, which obey lines on stdin, and others."""

import contextlib
import ctypes
import os
import pathlib
import select
import signal
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "build" / "libtcpEvent.so"
BUILT = ROOT / "target" / "bench"

# Anything slower hangs. Under emulation a start takes a minute.
PATIENCE = 300.0
END_PATIENCE = 10.0

CFLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-pedantic", "-pthread")

TRACEFS = pathlib.Path("/sys/kernel/tracing")

PR_SET_PDEATHSIG = 1
CLONE_NEWNS = 0x20000
CLONE_NEWNET = 0x40000000

libc = ctypes.CDLL(None, use_errno=True)


class BenchError(Exception):
    """The reason why a figure cannot be measured, in one line with the remedy."""


def build(name, *options):
    """The path of a C program, compiled if it is out of date, with these further options."""
    sources = ROOT / "benches" / "c"
    program = BUILT / name
    inputs = [sources / f"{name}.c", *sources.glob("*.h"), *(ROOT / "include").glob("*.h")]
    if program.exists() and program.stat().st_mtime > max(path.stat().st_mtime for path in inputs):
        return program
    BUILT.mkdir(parents=True, exist_ok=True)
    # Another process may be running the old one, or compiling the same.
    unfinished = BUILT / f"{name}.{os.getpid()}"
    compiler = os.environ.get("CC", "cc").split()
    command = [*compiler, *CFLAGS, "-I", ROOT / "include", sources / f"{name}.c", "-o", unfinished, "-ldl", *options]
    try:
        subprocess.run(command, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BenchError(f"benches/c/{name}.c was not compiled: {error}; is there a C compiler?") from error
    unfinished.rename(program)
    return program


@contextlib.contextmanager
def network_of(pid):
    """Children started in here join the network namespace of that process. None: this one's."""
    if pid is None:
        yield
        return
    own = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        other = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
        try:
            enter(other)
            try:
                yield
            finally:
                enter(own)
        finally:
            os.close(other)
    finally:
        os.close(own)


def enter(namespace):
    if libc.setns(namespace, CLONE_NEWNET) < 0:
        raise BenchError(f"setns: {os.strerror(ctypes.get_errno())}; run as root")


def ensure_tracefs():
    """The peers need it, and do not mount it: in a private mount namespace."""
    if (TRACEFS / "events").exists():
        return
    if libc.unshare(CLONE_NEWNS) < 0:
        raise BenchError(f"unshare: {os.strerror(ctypes.get_errno())}; run as root")
    for command in (["mount", "--make-rprivate", "/"], ["mount", "-t", "tracefs", "none", TRACEFS]):
        if subprocess.run(command, check=False).returncode:
            raise BenchError(f"tracefs cannot be mounted: mount -t tracefs none {TRACEFS}")


def end_with_parent():
    """Runs in the child: leftovers of a killed driver would disturb whatever comes next."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Child:
    """A child process. Its stdout is a pipe, or a file in memory, which needs no reader."""

    def __init__(self, command, *, environment=None, network=None, to_file=False):
        self.name = os.path.basename(str(command[0]))
        self.errors_file = os.memfd_create(f"{self.name}-stderr")
        self.output_file = os.memfd_create(f"{self.name}-stdout") if to_file else None
        self.pending = b""
        try:
            with network_of(network):
                self.process = subprocess.Popen(
                    [str(word) for word in command],
                    stdin=subprocess.PIPE,
                    stdout=self.output_file if to_file else subprocess.PIPE,
                    stderr=self.errors_file,
                    env=environment,
                    start_new_session=True,
                    preexec_fn=end_with_parent,
                )
        except OSError as error:
            self.close_files()
            raise BenchError(f"{command[0]} does not start: {error}") from error
        self.pid = self.process.pid

    def __enter__(self):
        return self

    def __exit__(self, failure, *_):
        if failure:
            self.kill()
        else:
            self.end()

    def end(self):
        """Ends it, and returns its status. Does nothing if it has ended before."""
        if self.errors_file is None:
            return self.process.returncode
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(END_PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
        status = self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()
        self.close_files()
        return status

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.end()

    def close_files(self):
        for file in (self.errors_file, self.output_file):
            if file is not None:
                os.close(file)
        self.errors_file = self.output_file = None

    def interrupt(self):
        """As Ctrl-C does; returns when it has ended."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"{self.name} does not end on SIGINT") from error

    def output(self):
        """What it has written to its file so far."""
        return contents(self.output_file)

    def errors(self):
        """What it has written to stderr so far."""
        return contents(self.errors_file).decode(errors="backslashreplace")

    def line(self, patience=PATIENCE):
        """The next line of stdout, as words."""
        until = time.monotonic() + patience
        while b"\n" not in self.pending:
            left = until - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                raise BenchError(f"{self.name} has not answered for {patience:g} s")
            more = os.read(self.process.stdout.fileno(), 65536)
            if not more:
                raise BenchError(self.ended())
            self.pending += more
        line, self.pending = self.pending.split(b"\n", 1)
        return line.decode().split()

    def greeting(self):
        """The first line: the program is ready."""
        try:
            return self.line()
        except BaseException:
            self.kill()
            raise

    def ended(self):
        """Why it has ended."""
        status = self.process.wait()
        said = self.errors().strip().splitlines()
        return said[-1] if said else f"{self.name} has ended, with status {status}"

    def ask(self, command, answer, patience=PATIENCE):
        """Sends a line, and returns what follows the first word of the answer."""
        try:
            self.process.stdin.write(f"{command}\n".encode())
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise BenchError(self.ended()) from error
        words = self.line(patience)
        if not words or words[0] != answer:
            raise BenchError(f"{self.name} has answered {' '.join(words)!r} to {command!r}")
        return words[1:]


def contents(file):
    return os.pread(file, os.fstat(file).st_size, 0)


def cpu_of_command(command, network=None):
    """Runs a command and discards its output. Returns its CPU time in seconds, user and system, and its duration."""
    began = time.monotonic()
    with network_of(network):
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=end_with_parent,
        )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise BenchError(f"{' '.join(command)} has failed, with status {process.returncode}")
    return usage.ru_utime + usage.ru_stime, time.monotonic() - began
