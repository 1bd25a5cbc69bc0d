"""The machine of a run."""

import datetime
import os
import re
import shutil
import subprocess

from . import tasks
from .programs import LIBRARY, ROOT
from .watchers import find


def first(pattern, text, default="unknown"):
    found = re.search(pattern, text, re.MULTILINE)
    return found[1].strip() if found else default


def package_of(path):
    """As in "libbpf-tools 0.26.0+ds-1"; the file alone if no Debian package has it."""
    try:
        # Paths in packages: with links resolved, and from before /bin was /usr/bin.
        for name in (path, os.path.realpath(path), path.removeprefix("/usr")):
            owner = subprocess.run(["dpkg-query", "-S", name], capture_output=True, text=True, check=False).stdout
            if owner:
                version = subprocess.run(
                    ["dpkg-query", "-W", "-f", "${Package} ${Version}", owner.split(":")[0]],
                    capture_output=True,
                    text=True,
                    check=True,
                ).stdout
                return version.strip()
    except (OSError, subprocess.CalledProcessError):
        pass
    return path


def describe():
    cpuinfo, meminfo = tasks.read("/proc/cpuinfo"), tasks.read("/proc/meminfo")
    kib = int(first(r"^MemTotal:\s*(\d+) kB", meminfo, "0"))
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "kernel": os.uname().release + " " + os.uname().machine,
        "processor": first(r"^model name\s*:\s*(.*)", cpuinfo),
        "virtual": " hypervisor " in first(r"^flags\s*:\s*(.*)", cpuinfo, "") + " ",
        "processors": len(os.sched_getaffinity(0)),
        "memory": f"{kib / (1 << 20):.1f} GiB",
        "load_average": os.getloadavg()[0],
        "library": f"libtcpEvent {first(r'^version *= *.(.*).$', tasks.read(ROOT / 'Cargo.toml'))}, "
        f"{LIBRARY.stat().st_size:,} bytes",
        "peers": {
            name: package_of(path)
            for name, path in (
                ("tcplife", find("tcplife")),
                ("tcpstates", find("tcpstates")),
                ("ss", shutil.which("ss")),
            )
        },
    }


def lines(machine):
    """The same as text: what, and how much of it."""
    kind = ", a virtual machine" if machine["virtual"] else ""
    peers = sorted(set(machine["peers"].values()))
    return [
        ("date", machine["date"]),
        ("kernel", machine["kernel"]),
        ("processors", f"{machine['processors']} × {machine['processor']}{kind}"),
        ("memory", machine["memory"]),
        ("load average before", f"{machine['load_average']:.2f}"),
        ("library", machine["library"]),
        ("peers", ", ".join(peers)),
    ]
