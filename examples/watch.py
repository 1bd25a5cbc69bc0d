#!/usr/bin/python3
"""watch.py - prints the TCP connections that end, until Ctrl-C: watch.py [FILTER WORD...], as in dport 443 failed"""

import ctypes as c
import errno
import ipaddress
import os
import sys
import time

U8, U16, U32, U64 = c.c_uint8, c.c_uint16, c.c_uint32, c.c_uint64
FLAG_FAILED, FLAG_GIVEN_UP, KNOWN_ERROR, KNOWN_COUNTERS = 1, 2, 4, 8


def fields(*groups):
    return [(name, kind) for kind, names in groups for name in names.split()]


class Options(c.Structure):
    _fields_ = fields(
        (c.c_size_t, "size"),
        (U32, "events probe queue_slots snapshot_interval_ms"),
        (c.c_char_p, "filter btf_path"),
        (c.c_void_p, "log log_context"),
        (c.c_int, "log_level reserved"),
    )


class Event(c.Structure):
    _fields_ = fields(
        (U32, "size"),
        (U8, "kind old_state new_state direction"),
        (U64, "time_ns monotonic_ns cookie cgroup inode"),
        (U32, "netns pid uid known flags"),
        (c.c_int32, "error"),
        (U16, "family local_port remote_port"),
        (U8, "owner_by ending"),
        (U8 * 16, "local_addr remote_addr"),
        (c.c_char * 16, "comm"),
        (U64, "age_ns establish_ns payload_received payload_sent payload_acked bytes_received bytes_acked"),
        (U64, "bytes_sent bytes_retransmitted"),
        (U32, "segs_retransmitted segs_out segs_in data_segs_out data_segs_in srtt_us min_rtt_us"),
        (U32, "reserved2 accept_queue accept_queue_limit dropped newly_dropped"),
    )


def endpoint(event, addr, port):
    address = ipaddress.ip_address(bytes(addr[:4] if event.family == 2 else addr))
    return f"{address}:{port}" if event.family == 2 else f"[{address}]:{port}"


def line(event):
    # A process chooses its own name: only printable ASCII may reach the terminal.
    name = "".join(chr(byte) if 32 <= byte < 127 and byte != 92 else f"\\x{byte:02x}" for byte in event.comm)
    text = f"{time.strftime('%H:%M:%S', time.localtime(event.time_ns // 10**9))} {name}[{event.pid}] "
    ends = ((event.local_addr, event.local_port), (event.remote_addr, event.remote_port))
    text += " -> ".join(endpoint(event, addr, port) for addr, port in ends)
    received, sent = (event.payload_received, event.payload_sent) if event.known & KNOWN_COUNTERS else "--"
    text += f" received {received} sent {sent} in {event.age_ns / 1e9:.3f} s"
    if event.flags & FLAG_FAILED:
        text += " given up" if event.flags & FLAG_GIVEN_UP else " failed"
    if not event.known & KNOWN_ERROR and not event.flags & FLAG_GIVEN_UP:
        text += " reason unknown"
    return text + (" " + errno.errorcode.get(event.error, str(event.error)) if event.error else "")


library, watch, events = c.CDLL("libtcpEvent.so"), c.c_void_p(), (Event * 64)()
library.tcpevent_last_error.restype = c.c_char_p  # ctypes takes results for int where nothing else is declared
options = Options(size=c.sizeof(Options), filter=os.fsencode(" ".join(sys.argv[1:])))
if library.tcpevent_open(c.byref(options), c.byref(watch)) < 0:
    sys.exit(f"watch.py: {library.tcpevent_last_error().decode()}")
try:
    # Python handles signals between calls, so no call waits for longer than a second.
    while (count := library.tcpevent_read(watch, events, c.c_size_t(c.sizeof(Event)), c.c_size_t(64), 1000)) >= 0:
        for event in events[:count]:
            print(line(event), flush=True)
    sys.exit(f"watch.py: {library.tcpevent_last_error().decode()}")
except KeyboardInterrupt:
    pass
library.tcpevent_close(watch)
