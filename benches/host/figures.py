"""One function for each measurement. Each returns the rows of the table, and all further readings.

Rounds are interleaved: each contains everything that is compared, so that a drift of the machine affects all equally.
"""

import contextlib
import os
import shutil
import statistics
import time

from . import tasks
from .programs import PATIENCE, BenchError, Child, build, cpu_of_command
from .rows import Row
from .traffic import PORT, TRANSITIONS, WARM_UP, Connections, Sockets, processors
from .watchers import Library, Nobody, tcplife, tcpstates, wait_for_events

BPF_STATISTICS = "/proc/sys/kernel/bpf_stats_enabled"

# tcpstates is so slow that it gets fewer connections.
SHARE_OF_TCPSTATES = 4


@contextlib.contextmanager
def bpf_statistics():
    """Has the kernel measure the run time of BPF programs. That itself takes time, so only rounds that need it do this."""
    before = tasks.read(BPF_STATISTICS)
    with open(BPF_STATISTICS, "w", encoding="ascii") as file:
        file.write("1")
    try:
        yield
    finally:
        with open(BPF_STATISTICS, "w", encoding="ascii") as file:
            file.write(before)


def observe(watcher, count, rate=0, connections=None):
    """Short connections while a watcher is attached: their cost, and the watcher's."""
    with contextlib.nullcontext(connections) if connections else Connections() as connections:
        connections.made = 0
        connections.run(WARM_UP)
        watcher.settle(connections)
        if isinstance(watcher, Library):
            watcher.latency()
        programs = tasks.bpf_programs(watcher.pid) if watcher.pid else {}
        cpu = watcher.cpu_ns()
        traffic_cpu = connections.cpu_ns()
        seconds = connections.run(count, rate)
        traffic_cpu = connections.cpu_ns() - traffic_cpu
        watcher.settle(connections)
        seen = {
            "connections": count,
            "seconds": seconds,
            "rate": count / seconds,
            "traffic_cpu_us": traffic_cpu / count / 1e3,
            "cpu_us": (watcher.cpu_ns() - cpu) / count / 1e3,
        }
        if isinstance(watcher, Library):
            seen["latency_ms"] = watcher.latency()
        if watcher.pid:
            after = tasks.bpf_programs(watcher.pid)
            seen["bpf_us"] = sum(after[i][0] - programs[i][0] for i in programs) / count / 1e3
            seen["bpf_runs"] = sum(after[i][1] - programs[i][1] for i in programs) / count
            seen["memory_kib"] = tasks.memory_kib(watcher.pid)
            seen["peak_kib"] = tasks.peak_memory_kib(watcher.pid)
            delivered = watcher.finish(PORT)
            seen["lost"] = connections.made * watcher.expected - delivered
            seen["lost_share"] = seen["lost"] / (connections.made * watcher.expected)
        return seen


def watch(watcher, count, **arguments):
    """The same with a watcher that is not attached yet."""
    with watcher:
        seen = observe(watcher, count, **arguments)
        if isinstance(watcher, Library):
            seen["memory_before_kib"] = watcher.memory_before_kib
            seen["counters"] = watcher.stop()
        return seen


def libraries(bench):
    """The library on each rung that works, by name."""
    return {rung: Library(PORT, rung=rung) for rung, refusal in bench.rungs.items() if refusal is None}


def missing_rungs(bench, figure):
    return [Row(f"{figure}, {rung}", missing=refusal) for rung, refusal in bench.rungs.items() if refusal is not None]


def rotated(items, by):
    return items[by % len(items) :] + items[: by % len(items)]


def check_peers(rounds):
    """Notes on peers that reported nothing: they have not done the work that they are compared by."""
    notes = []
    for name in ("tcplife", "tcpstates"):
        shares = [seen["lost_share"] for seen in rounds.get(name, [])]
        if shares and statistics.median(shares) > 0.5:
            raise BenchError(
                f"{name} has told of {100 * (1 - statistics.median(shares)):.0f} % of its events: "
                "is another program at work on the same ports?"
            )
        if shares:
            notes.append(f"{name} lost {100 * statistics.median(shares):.1f} % of its events")
    return notes


# The machine's speed changes from second to second, and that of client and server with the placement of their memory: a
# watcher's rate is compared with the rounds right beside it, of the same two processes, and many short pieces say more
# than a few long ones.
PIECES = 3


def loaded_rounds(bench, rounds, apart):
    """Rounds of each of the watchers, with one of none before and after it, to which its rate is compared."""
    watchers = {**libraries(bench), "tcplife": tcplife(), "tcpstates": tcpstates()}
    seen = {"nobody": [], **{name: [] for name in watchers}}
    count = bench.connections // PIECES
    for number in range(rounds * PIECES):
        now = {}
        with Connections(apart) as connections:
            before = watch(Nobody(), count, connections=connections)
            for name in rotated(list(watchers), number):
                few = count // (SHARE_OF_TCPSTATES if name == "tcpstates" else 1)
                now[name] = watch(watchers[name], few, connections=connections)
                after = watch(Nobody(), count, connections=connections)
                rate = statistics.mean((before["rate"], after["rate"]))
                now[name]["loss"] = 100 * (1 - now[name]["rate"] / rate)
                seen[name].append(now[name])
                seen["nobody"].append(after)
                before = after
        bench.progress(
            f"{rate:,.0f} connections/s alone" + "".join(f"; {name} {-one['loss']:+.1f} %" for name, one in now.items())
        )
    return seen


def column(rounds, *keys):
    values = []
    for value in rounds:
        for key in keys:
            value = value[key]
        values.append(value)
    return values


def load(bench):
    """The cost of watching for connections that follow one another as fast as possible."""
    seen = loaded_rounds(bench, bench.rounds, apart=True)
    rows = []
    tcplife_loss = column(seen["tcplife"], "loss")
    for rung in bench.working_rungs():
        ours = seen[rung]
        rows += [
            Row(
                f"connection rate lost, {rung}",
                "%",
                column(ours, "loss"),
                "tcplife",
                tcplife_loss,
                at_most=2,
                part=1 / 10,
                target="≤ 2 %, ≤ 1/10",
            ),
            Row(
                f"CPU of the watching process a connection, {rung}",
                "us",
                column(ours, "cpu_us"),
                "tcplife",
                column(seen["tcplife"], "cpu_us"),
                part=1 / 3,
                target="≤ 1/3",
            ),
            Row(f"delivery under load, p50, {rung}", "ms", column(ours, "latency_ms", "p50")),
            Row(
                f"delivery under load, p99, {rung}", "ms", column(ours, "latency_ms", "p99"), at_most=5, target="≤ 5 ms"
            ),
            Row(
                f"events lost under load, {rung}",
                "",
                [sum(abs(lost) for lost in column(ours, "lost"))],
                at_most=0,
                target="0",
            ),
        ]
    return rows + missing_rungs(bench, "load"), {"rounds": seen, "notes": check_peers(seen)}


def together(bench):
    """The same with client and server on one processor, where there are no wake-ups between processors and a
    connection takes less than half the time: the harshest load. No target is set for it."""
    if bench.processors < 2:
        raise BenchError("there is one processor only: the load is this one already")
    seen = loaded_rounds(bench, max(1, bench.rounds // 2), apart=False)
    rows = [
        Row(
            f"connection rate lost, both ends on one processor, {rung}",
            "%",
            column(seen[rung], "loss"),
            "tcplife",
            column(seen["tcplife"], "loss"),
        )
        for rung in bench.working_rungs()
    ]
    return rows, {"rounds": seen, "notes": check_peers(seen)}


def bpf(bench):
    """Run time of all BPF programs of a watcher for each connection, both ends included."""
    watchers = {**libraries(bench), "tcplife": tcplife(), "tcpstates": tcpstates()}
    seen = {name: [] for name in watchers}
    with bpf_statistics():
        for number in range(max(1, bench.rounds // 2)):
            for name in rotated(list(watchers), number):
                count = bench.connections // (SHARE_OF_TCPSTATES if name == "tcpstates" else 1)
                seen[name].append(watch(watchers[name], count))
            bench.progress("; ".join(f"{name} {rounds[-1]['bpf_us']:.2f} us" for name, rounds in seen.items()))
    for name, rounds in seen.items():
        if not all(column(rounds, "bpf_runs")):
            raise BenchError(f"the kernel has counted no run of {name}'s programs (kernel.bpf_stats_enabled)")
    rows = [
        Row(
            f"BPF time a connection, {rung}",
            "us",
            column(seen[rung], "bpf_us"),
            "tcplife",
            column(seen["tcplife"], "bpf_us"),
            part=1 / 15,
            target="≤ 1/15",
        )
        for rung in bench.working_rungs()
    ]
    return rows + missing_rungs(bench, "BPF time"), {"rounds": seen, "notes": check_peers(seen)}


def quiet(bench):
    """From the end of a connection until DequeuePerfEvent has returned it, on an idle host."""
    rate, count = 50, 50 if bench.quick else 200
    seen = {rung: [] for rung in bench.working_rungs()}
    for _ in range(max(1, bench.rounds // 3)):
        for rung, watcher in libraries(bench).items():
            seen[rung].append(watch(watcher, count, rate=rate))
    rows = []
    for rung, rounds in seen.items():
        if sum(abs(lost) for lost in column(rounds, "lost")):
            raise BenchError(f"{rung}: events are missing on a quiet host: is it one?")
        rows += [
            Row(
                f"delivery on a quiet host, p50, {rung}",
                "ms",
                column(rounds, "latency_ms", "p50"),
                at_most=0.2,
                target="≤ 0.2 ms",
            ),
            Row(
                f"delivery on a quiet host, p99, {rung}",
                "ms",
                column(rounds, "latency_ms", "p99"),
                at_most=1,
                target="≤ 1 ms",
            ),
        ]
    return rows + missing_rungs(bench, "delivery"), {"rounds": seen}


def idle(bench):
    """Wake-ups of all threads of the library's process between two snapshots, while no connection begins or ends."""
    seconds, tries = 2 if bench.quick else 5, 3
    with tcplife() as peer:
        time.sleep(0.5)
        before = tasks.wakeups(peer.pid)
        time.sleep(seconds)
        of_peer = (tasks.wakeups(peer.pid) - before) / seconds
    counts = []
    with Library(PORT, netlink_interval=4 * 3600) as library:
        for _ in range(tries):
            wait_until_asleep(library)
            events = library.counts()
            time.sleep(0.1)  # lets the thread that answered go to sleep
            before = tasks.wakeups(library.pid)
            time.sleep(seconds)
            woken = tasks.wakeups(library.pid) - before
            strangers = sum(library.counts()) - sum(events)
            counts.append({"seconds": seconds, "wakeups": woken, "events": strangers})
            if strangers == 0:
                break
        else:
            raise BenchError(f"the host is not idle: {strangers} events came in {seconds} s; end what connects")
    row = Row("wake-ups a second, idle host", "", [woken / seconds], "tcplife", [of_peer], at_most=0, target="0")
    return [row], {"tries": counts, "tcplife_per_second": of_peer}


def wait_until_asleep(library):
    """Waits for the end of the first snapshot."""
    before = None
    while before != (before := tasks.cpu_ns(library.pid)):
        time.sleep(0.3)


def start(bench):
    """From the call of AddProbe until getStatus is 1, each in a new process."""
    times = {}
    for rung in [None, *bench.working_rungs()]:
        times[rung or "auto"] = []
        for _ in range(5 if bench.quick else 20):
            with Library(PORT, rung=rung, consume=False) as library:
                times[rung or "auto"].append(library.started_ms)
    rows = [
        Row(f"AddProbe to status 1{'' if rung == 'auto' else ', ' + rung}", "ms", values, at_most=15, target="≤ 15 ms")
        for rung, values in times.items()
    ]
    return rows, {"ms": times}


def syscalls(bench):
    """The time of a system call unrelated to connections, without any connections."""
    count, rounds = 40_000 if bench.quick else 200_000, max(2, bench.rounds // 2)
    watchers = {"nobody": Nobody(), **libraries(bench), "tcplife": tcplife(), "tcpstates": tcpstates()}
    seen = {name: [] for name in watchers}
    with Child([build("syscalls"), processors(apart=True)[0]]) as caller:
        for number in range(rounds):
            for name in rotated(list(watchers), number):
                with watchers[name]:
                    seen[name].append(min(float(caller.ask(f"run {count}", "ran")[1]) for _ in range(5)))
    rows = [
        Row(f"a system call (getppid), {name}", "ns", values, "nobody", seen["nobody"])
        for name, values in seen.items()
        if name != "nobody"
    ]
    return rows, seen


def memory(bench):
    """Resident memory after that load: what the library has added to its host, and tcplife whole."""
    library = watch(Library(PORT), bench.connections)
    peer = watch(tcplife(), bench.connections)
    added = (library["memory_kib"] - library["memory_before_kib"]) / 1024
    peak = (library["peak_kib"] - library["memory_before_kib"]) / 1024
    rows = [
        Row(
            "resident memory beside the host's",
            "MiB",
            [added],
            "tcplife, whole",
            [peer["memory_kib"] / 1024],
            at_most=8,
            target="≤ 8 MiB",
        ),
        Row("the most that it was, from the start on", "MiB", [peak], "tcplife, whole", [peer["peak_kib"] / 1024]),
    ]
    return rows, {"library": library, "tcplife": peer}


class Sweeps:
    """The CPU time of the library's sweeps, one after another."""

    def __init__(self, library, sockets):
        self.library = library
        self.sockets = sockets
        self.events = self.cpu_ns = self.process_cpu_ns = 0

    def next(self):
        """Waits for the end of the next sweep. Returns its CPU time in seconds, without and with the consumer's thread."""
        for last in (False, False, True):
            self.events += self.sockets
            try:
                wait_for_events_of(self.library, self.events)
                break
            except BenchError:
                # If one began late because the machine was held up, the next one follows at once.
                if last:
                    raise
                self.start_anew()
        cpu_ns, process_cpu_ns = self.library.sweep_cpu_ns(), self.library.cpu_ns()
        now = (cpu_ns - self.cpu_ns) / 1e9, (process_cpu_ns - self.process_cpu_ns) / 1e9
        self.cpu_ns, self.process_cpu_ns = cpu_ns, process_cpu_ns
        return now

    def start_anew(self):
        """From what is there between two of them."""
        events = None
        while events != (events := sum(self.library.counts())):
            time.sleep(0.3)
        self.events = events
        self.cpu_ns, self.process_cpu_ns = self.library.sweep_cpu_ns(), self.library.cpu_ns()

    def rests(self):
        """Whether no other sweep has begun since."""
        return self.library.sweep_cpu_ns() == self.cpu_ns


def wait_for_events_of(library, count):
    """Waits until so many events have come, of any socket, and the sweeping thread sleeps."""
    wait_for_events(library, lambda: sum(library.counts()) >= count, PATIENCE)
    if sum(library.counts()) != count:
        raise BenchError(
            f"{sum(library.counts())} snapshots came, {count} had to: did a sweep take longer than the "
            "interval? set --sweep-interval higher"
        )
    wait_until_swept(library)


def wait_until_swept(library):
    """Waits until the sweeping thread sleeps."""
    before = None
    while before != (before := library.sweep_cpu_ns()):
        time.sleep(0.05)


def ss():
    path = shutil.which("ss")
    if path is None:
        raise BenchError("ss is missing: apt-get install iproute2")
    return path


def sweep(bench):
    """A round of snapshots beside `ss -tinpH` of the same sockets."""
    command = [ss(), "-tinpH"]
    seen = []
    with Sockets(bench.sockets, bench.processes) as held:
        cpu_of_command(command, held.pid)
        with Library(0, probe=True, network=held.pid, queue=bench.slots, netlink_interval=bench.sweep_interval) as ours:
            sweeps = Sweeps(ours, bench.sockets)
            sweeps.next()
            while len(seen) < bench.rounds:
                cpu, process_cpu = sweeps.next()
                of_ss, elapsed = cpu_of_command(command, held.pid)
                if not sweeps.rests():
                    raise BenchError(f"a sweep began while ss ran, for {elapsed:.2f} s: set --sweep-interval higher")
                seen.append({"sweep_s": cpu, "process_s": process_cpu, "ss_s": of_ss})
                bench.progress(f"sweep {cpu * 1e3:.0f} ms, ss {of_ss * 1e3:.0f} ms")
    of_ss = [1e3 * one for one in column(seen, "ss_s")]
    what = f"{bench.sockets:,} sockets in {bench.processes} processes"
    rows = [
        Row(
            f"CPU of a sweep, {what}",
            "ms",
            [1e3 * one for one in column(seen, "sweep_s")],
            "ss -tinpH",
            of_ss,
            part=1 / 6,
            target="≤ 1/6",
        ),
        Row(
            "the same with the taking of its events",
            "ms",
            [1e3 * one for one in column(seen, "process_s")],
            "ss -tinpH",
            of_ss,
        ),
    ]
    return rows, {"rounds": seen}


# Enough if its consumer is never delayed for long; and little memory, whenever that is first touched.
SMALL_QUEUE = 8192


def scale(bench):
    """CPU time of sweeps, and memory, with a hundredth of the most sockets, a tenth, all, and the hundredth again."""
    few, some, most, rounds = bench.most // 100, bench.most // 10, bench.most, 2 if bench.quick else 3
    seen = []
    with Sockets(few, 20) as held:
        with Library(
            0, probe=True, network=held.pid, queue=SMALL_QUEUE, netlink_interval=bench.sweep_interval
        ) as library:
            sweeps = Sweeps(library, few)
            sweeps.next()

            def measure():
                tasks.forget_peak_memory(library.pid)
                cpu = [sweeps.next()[0] for _ in range(rounds)]
                now = {
                    "sockets": sweeps.sockets,
                    "cpu_us": [1e6 * one / sweeps.sockets for one in cpu],
                    "memory_kib": tasks.memory_kib(library.pid),
                    "peak_kib": tasks.peak_memory_kib(library.pid),
                }
                bench.progress(
                    f"{now['sockets']:,} sockets: {statistics.median(now['cpu_us']):.2f} us each, "
                    f"{now['memory_kib']:,} KiB, {now['peak_kib']:,} at most"
                )
                seen.append(now)

            measure()
            with Sockets(some - few, 180, held.pid):
                grow(sweeps, some)
                measure()
                with Sockets(most - some, 180, held.pid):
                    grow(sweeps, most)
                    measure()
            grow(sweeps, few)
            measure()
    left = (seen[-1]["memory_kib"] - seen[0]["memory_kib"]) / 1024
    peak = (seen[2]["peak_kib"] - seen[0]["memory_kib"]) / 1024
    rows = [
        Row(
            f"CPU of a sweep a socket, of {most:,} sockets",
            "us",
            seen[2]["cpu_us"],
            f"ours, of {few:,}",
            seen[0]["cpu_us"],
            part=1.25,
            target="flat: ≤ 1.25",
        ),
        Row(
            "the same, beside a tenth",
            "us",
            seen[2]["cpu_us"],
            f"ours, of {some:,}",
            seen[1]["cpu_us"],
            part=1.25,
            target="flat: ≤ 1.25",
        ),
        Row(
            f"memory left of {most:,} sockets (at most {peak:.1f} MiB)",
            "MiB",
            [left],
            at_most=1,
            target="returned: ≤ 1 MiB",
        ),
    ]
    return rows, {"sizes": seen}


def grow(sweeps, sockets):
    """Discards sweeps after the sockets have changed: one may have seen some of the new ones."""
    library = sweeps.library
    for _ in range(2):
        before = library.sweep_cpu_ns()
        while library.sweep_cpu_ns() == before:
            time.sleep(0.005)
        wait_until_swept(library)
    sweeps.sockets = sockets
    sweeps.start_anew()


def throughput(bench):
    """Events through DequeuePerfEvent from a full queue, with one thread and with eight in turn."""
    rounds, slots = 4, min(50 * bench.sockets, 1_000_000)
    share = slots // (2 * rounds)
    seen = {1: [], 8: []}
    with Sockets(bench.sockets, bench.processes) as held:
        with Library(0, probe=False, network=held.pid, consume=False, queue=slots, netlink_interval=0.1) as library:
            # The first call starts the sweeps, and takes one event. No other is taken until the queue is full.
            library.child.ask("first", "first")
            until = time.monotonic() + 600
            while "Shedding TCP (Netlink) events" not in library.child.errors():
                if time.monotonic() > until:
                    raise BenchError(f"a queue of {slots:,} events is not full after 10 minutes; set --sockets lower")
                time.sleep(0.1)
            library.stop()
            for number in range(2 * rounds):
                threads = (1, 8)[(number + number // 2) % 2]
                _, seconds = library.child.ask(f"drain {share} {threads}", "drained")
                seen[threads].append(share / float(seconds) / 1e6)
    rows = [
        Row("events through DequeuePerfEvent, one consumer", "million/s", seen[1], at_least=2, target="≥ 2 million/s"),
        Row(
            "the same, eight consumers",
            "million/s",
            seen[8],
            "ours, one",
            seen[1],
            at_least=statistics.median(seen[1]),
            target="no slower than one",
        ),
    ]
    return rows, {"events": share, "million_per_second": seen}


def tracked(bench):
    """BPF time for each change of state, while few or many other connections are alive."""
    few, most = bench.most // 100, bench.most
    rows, seen = [], {}
    with bpf_statistics():
        for rung in bench.working_rungs():
            seen[rung] = {few: [], most: []}
            with Library(PORT, rung=rung) as library, Connections() as connections:
                connections.run(WARM_UP)
                for _ in range(max(2, bench.rounds // 2)):
                    for alive in (few, most):
                        connections.hold(alive)
                        library.settle(connections)
                        before = sum(ns for ns, _ in tasks.bpf_programs(library.pid).values())
                        count = bench.connections // 4
                        connections.run(count)
                        after = sum(ns for ns, _ in tasks.bpf_programs(library.pid).values())
                        seen[rung][alive].append((after - before) / (count * TRANSITIONS))
                connections.hold(0)
                counters = library.stop()
            if counters.get("lost_owners"):
                raise BenchError(f"{rung}: {counters['lost_owners']} connections were not tracked: set --most lower")
            rows.append(
                Row(
                    f"BPF time a transition, {most:,} connections alive, {rung}",
                    "ns",
                    seen[rung][most],
                    f"ours, {few:,}",
                    seen[rung][few],
                    part=1.25,
                    target="flat: ≤ 1.25",
                )
            )
            bench.progress(
                f"{rung}: {statistics.median(seen[rung][few]):.0f} ns with {few:,} alive, "
                f"{statistics.median(seen[rung][most]):.0f} with {most:,}"
            )
    return rows + missing_rungs(bench, "tracked connections"), seen


# Fractions of the host's maximum without a watcher.
OFFERED = (0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, None)


def cost(bench):
    """CPU time of client, server and watcher against connections offered, for the plot."""
    watchers = {"nobody": Nobody(), **libraries(bench), "tcplife": tcplife(), "tcpstates": tcpstates()}
    seconds = 0.2 if bench.quick else 0.5
    most = watch(Nobody(), bench.connections)["rate"]
    rates = [round(share * most, -2) if share else 0 for share in OFFERED]
    points = {name: [[] for _ in rates] for name in watchers}
    for number in range(1 if bench.quick else 2):
        for name in rotated(list(watchers), number):
            with watchers[name] as watcher, Connections() as connections:
                connections.run(WARM_UP)
                watcher.settle(connections)
                for place, rate in enumerate(rates):
                    count = max(100, int((rate or most) * seconds))
                    before = watcher.cpu_ns() + connections.cpu_ns()
                    took = connections.run(count, int(rate))
                    watcher.settle(connections)
                    used = (watcher.cpu_ns() + connections.cpu_ns() - before) / 1e9
                    points[name][place].append({"offered": rate, "rate": count / took, "cpu": 100 * used / took})
        bench.progress(f"round {number + 1}")
    lines = {name: [of_point(point) for point in places if keeps_up(point)] for name, places in points.items()}
    return [], {"points": points, "lines": lines}


def of_point(rounds):
    return statistics.median(column(rounds, "rate")), statistics.median(column(rounds, "cpu"))


def keeps_up(rounds):
    """Whether the offered load is served. Beyond that, more load only repeats the maximum."""
    return statistics.median(one["rate"] - 0.97 * one["offered"] for one in rounds) >= 0


# Batches so short that the machine is the same for all of a pair, and of so many connections.
PAIRS, BATCH = 40, 1000


def pairs(bench):
    """What watching adds to the CPU time of a connection, whose both ends one thread makes: batches without, with, with and
    without a watcher in quick succession, again and again. The watcher has the other processor."""
    if bench.processors < 2:
        raise BenchError("there is one processor only: the watcher's time would be the connection's")
    connecting, watching = processors(apart=True)
    watchers = {**libraries(bench), "tcplife": tcplife()}
    seen = {name: [] for name in watchers}
    with Child([build("phases"), PORT, connecting]) as phases, on_processor(watching):

        def batch(count=BATCH):
            return sum(int(median) for median in phases.ask(f"pass {count}", "passed"))

        batch()
        for number in range(PAIRS // 8 if bench.quick else PAIRS):
            for name in rotated(list(watchers), number):
                without = batch()
                with watchers[name]:
                    batch(BATCH // 4)
                    watched = batch() + batch()
                without += batch()
                seen[name].append(100 * (watched / without - 1))
        quartiles = {name: statistics.quantiles(values, n=4) for name, values in seen.items()}
        bench.progress("; ".join(f"{name} {median:+.1f} %" for name, (_, median, _) in quartiles.items()))
    rows = [
        Row(
            f"CPU time added to a connection, in pairs, {rung}",
            "%",
            seen[rung],
            "tcplife",
            seen["tcplife"],
            at_most=3,
            part=1 / 10,
            target="≤ 3 %, ≤ 1/10",
        )
        for rung in bench.working_rungs()
    ]
    notes = [f"{name}: quartiles {low:.1f} and {high:.1f} %" for name, (low, _, high) in quartiles.items()]
    return rows + missing_rungs(bench, "pairs"), {"percent": seen, "notes": notes}


@contextlib.contextmanager
def on_processor(number):
    """Processes that are started meanwhile stay on it."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {number})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


FIGURES = {
    "bpf": bpf,
    "pairs": pairs,
    "load": load,
    "together": together,
    "quiet": quiet,
    "idle": idle,
    "start": start,
    "syscalls": syscalls,
    "memory": memory,
    "sweep": sweep,
    "scale": scale,
    "throughput": throughput,
    "tracked": tracked,
    "cost": cost,
}
