#!/usr/bin/python3
"""watch.py - prints the TCP connections that end, until Ctrl-C: watch.py [FILTER WORD...], as in dst 10.0.0.0/8 failed"""
import ctypes
import errno
import ipaddress
import os
import pathlib
import sys
import time

u8, u16, u32, u64 = ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64
FAILED, GIVEN_UP, ERROR_UNKNOWN, UNCOUNTED = 1, 2, 8, 16


class Options(ctypes.Structure):
    _fields_ = [('size', ctypes.c_size_t), ('events', u32), ('probe', u32), ('queue_slots', u32),
                ('snapshot_interval_ms', u32), ('filter', ctypes.c_char_p), ('btf_path', ctypes.c_char_p),
                ('log', ctypes.c_void_p), ('log_context', ctypes.c_void_p), ('log_level', ctypes.c_int),
                ('reserved', ctypes.c_int)]


class Event(ctypes.Structure):
    _fields_ = [('size', u32), ('kind', u8), ('old_state', u8), ('new_state', u8), ('direction', u8),
                *((name, u64) for name in ('time_ns', 'monotonic_ns', 'cookie', 'cgroup', 'inode')),
                *((name, u32) for name in ('netns', 'pid', 'uid', 'flags')), ('error', ctypes.c_int32),
                *((name, u16) for name in ('family', 'local_port', 'remote_port')), ('origin', u8),
                ('reserved', u8 * 5), ('local_addr', u8 * 16), ('remote_addr', u8 * 16), ('comm', ctypes.c_char * 16),
                *((name, u64) for name in ('age_ns', 'establish_ns', 'payload_received', 'payload_sent',
                                           'payload_acked', 'bytes_received', 'bytes_acked', 'bytes_sent',
                                           'bytes_retransmitted')),
                *((name, u32) for name in ('segs_retransmitted', 'segs_out', 'segs_in', 'data_segs_out',
                                           'data_segs_in', 'srtt_us', 'min_rtt_us', 'reserved2'))]


def load():
    """As LD_LIBRARY_PATH and the system have it, or as `make` has built it."""
    try:
        library = ctypes.CDLL('libtcpEvent.so')
    except OSError:
        library = ctypes.CDLL(str(pathlib.Path(__file__).resolve().parent.parent / 'build/libtcpEvent.so'))
    # ctypes takes arguments and results for int where nothing else is declared.
    library.tcpevent_read.argtypes = [ctypes.c_void_p, ctypes.POINTER(Event), ctypes.c_size_t, ctypes.c_size_t,
                                      ctypes.c_int]
    library.tcpevent_close.argtypes = [ctypes.c_void_p]
    library.tcpevent_last_error.restype = ctypes.c_char_p
    return library


def line(event):
    # A process chooses its own name: only printable ASCII may reach the terminal.
    name = ''.join(chr(byte) if 32 <= byte < 127 and byte != 92 else f'\\x{byte:02x}' for byte in event.comm)
    length = 4 if event.family == 2 else 16
    local, remote = (ipaddress.ip_address(bytes(addr[:length])) for addr in (event.local_addr, event.remote_addr))
    bytes_told = ('bytes unknown' if event.flags & UNCOUNTED else
                  f'received {event.payload_received} sent {event.payload_sent}')
    end = ('given up' if event.flags & GIVEN_UP else 'failed' if event.flags & FAILED else 'closed')
    cause = errno.errorcode.get(event.error, str(event.error)) if event.error else ''
    cause = 'for an unknown reason' if event.flags & ERROR_UNKNOWN else cause
    clock = time.strftime('%H:%M:%S', time.localtime(event.time_ns // 10**9))
    return (f'{clock} {name}[{event.pid}] {local} {event.local_port} -> {remote} {event.remote_port} '
            f'{bytes_told} in {event.age_ns / 1e9:.3f} s {end} {cause}').rstrip()


library, watch, events = load(), ctypes.c_void_p(), (Event * 64)()
options = Options(size=ctypes.sizeof(Options), filter=os.fsencode(' '.join(sys.argv[1:])))
if library.tcpevent_open(ctypes.byref(options), ctypes.byref(watch)) < 0:
    sys.exit('watch.py: ' + library.tcpevent_last_error().decode())
try:
    # Python looks at signals between calls: one that comes just before a wait is seen after a second at most.
    while (count := library.tcpevent_read(watch, events, ctypes.sizeof(Event), len(events), 1000)) >= 0:
        for event in events[:count]:
            print(line(event), flush=True)
    if count != -errno.EINTR:
        sys.exit('watch.py: ' + library.tcpevent_last_error().decode())
except KeyboardInterrupt:
    pass
library.tcpevent_close(watch)
