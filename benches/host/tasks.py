"""A process in /proc."""

import os
import re

from .programs import BenchError


def read(path):
    with open(path, encoding="utf-8", errors="backslashreplace") as file:
        return file.read()


def of_tasks(pid, name, comm=None):
    """A file of each thread, or of those with that name. Skips threads that end meanwhile."""
    texts = []
    for task in os.listdir(f"/proc/{pid}/task"):
        folder = f"/proc/{pid}/task/{task}"
        try:
            if comm is None or read(f"{folder}/comm").rstrip("\n") == comm:
                texts.append(read(f"{folder}/{name}"))
        except (FileNotFoundError, ProcessLookupError):
            pass
    return texts


def cpu_ns(pid, comm=None):
    """CPU time of a process, or of its threads with that name, to the nanosecond."""
    try:
        return sum(int(text.split()[0]) for text in of_tasks(pid, "schedstat", comm))
    except FileNotFoundError as error:
        raise BenchError(f"process {pid} has ended, or the kernel has no schedstat (CONFIG_SCHED_INFO)") from error


def wakeups(pid):
    """How often its threads have gone to sleep: as often as they were woken, spurious wake-ups included."""
    return sum(
        int(re.search(r"^voluntary_ctxt_switches:\s*(\d+)", text, re.MULTILINE)[1]) for text in of_tasks(pid, "status")
    )


def memory_kib(pid, field="Rss"):
    """Resident memory, counted page by page (VmRSS is not up to date)."""
    return int(re.search(rf"^{field}:\s*(\d+) kB", read(f"/proc/{pid}/smaps_rollup"), re.MULTILINE)[1])


def peak_memory_kib(pid):
    return int(re.search(r"^VmHWM:\s*(\d+) kB", read(f"/proc/{pid}/status"), re.MULTILINE)[1])


def forget_peak_memory(pid):
    with open(f"/proc/{pid}/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def descriptors(pid):
    """What each descriptor refers to."""
    folder = f"/proc/{pid}/fd"
    links = {}
    for number in os.listdir(folder):
        try:
            links[number] = os.readlink(f"{folder}/{number}")
        except FileNotFoundError:
            pass
    return links


def bpf_programs(pid):
    """Run time in ns and runs of each BPF program that it holds, by ID: the figures of `bpftool prog show`. The kernel
    counts them while kernel.bpf_stats_enabled is 1."""
    programs = {}
    for number, target in descriptors(pid).items():
        if target != "anon_inode:bpf-prog":
            continue
        try:
            fields = dict(line.split(":", 1) for line in read(f"/proc/{pid}/fdinfo/{number}").splitlines())
        except FileNotFoundError:
            continue
        programs[int(fields["prog_id"])] = (int(fields["run_time_ns"]), int(fields["run_cnt"]))
    return programs
