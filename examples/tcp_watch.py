#!/usr/bin/python3
"""tcp_watch.py - prints the TCP connections of this host that end, one line each, until Ctrl-C. Run it as root.

  --library PATH   the libtcpEvent.so to load; else one that LD_LIBRARY_PATH or the system has, else ../build's
  --states         print each change of a connection's state, not only its end
  FILTER WORD...   which connections, as in: dst 10.0.0.0/8 dport 443 failed (include/tcpevent.h has all words)

An example of a program that uses include/tcpevent.h from another language than C, by ctypes.
"""
import argparse
import ctypes
import errno
import ipaddress
import os
import pathlib
import signal
import socket
import sys
import threading
import time

u8, u16, u32, u64 = ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64
STATES, CLOSES = 1, 2
KIND_CLOSE = 2
FAILED, GIVEN_UP, ERROR_UNKNOWN, UNCOUNTED = 1, 2, 8, 16


class Options(ctypes.Structure):
    _fields_ = [('size', ctypes.c_size_t), ('events', u32), ('probe', u32), ('queue_slots', u32),
                ('snapshot_interval_ms', u32), ('filter', ctypes.c_char_p), ('btf_path', ctypes.c_char_p),
                ('log', ctypes.c_void_p), ('log_context', ctypes.c_void_p), ('log_level', ctypes.c_int),
                ('reserved', ctypes.c_int)]


class Event(ctypes.Structure):
    _fields_ = [('size', u32), ('kind', u8), ('old_state', u8), ('new_state', u8), ('direction', u8),
                *[(name, u64) for name in ('time_ns', 'monotonic_ns', 'cookie', 'cgroup', 'inode')],
                *[(name, u32) for name in ('netns', 'pid', 'uid', 'flags')], ('error', ctypes.c_int32),
                *[(name, u16) for name in ('family', 'local_port', 'remote_port')], ('origin', u8),
                ('reserved', u8 * 5), ('local_addr', u8 * 16), ('remote_addr', u8 * 16), ('comm', ctypes.c_char * 16),
                *[(name, u64) for name in ('age_ns', 'establish_ns', 'payload_received', 'payload_sent',
                                           'payload_acked', 'bytes_received', 'bytes_acked', 'bytes_sent',
                                           'bytes_retransmitted')],
                *[(name, u32) for name in ('segs_retransmitted', 'segs_out', 'segs_in', 'data_segs_out',
                                           'data_segs_in', 'srtt_us', 'min_rtt_us', 'reserved2')]]


def load(path):
    build = pathlib.Path(__file__).resolve().parent.parent / 'build/libtcpEvent.so'
    if path is None:
        try:
            library = ctypes.CDLL('libtcpEvent.so')
        except OSError:
            library = ctypes.CDLL(str(build))
    else:
        library = ctypes.CDLL(path)
    # What ctypes does not guess: pointers are no int.
    library.tcpevent_open.argtypes = [ctypes.POINTER(Options), ctypes.POINTER(ctypes.c_void_p)]
    library.tcpevent_read.argtypes = [ctypes.c_void_p, ctypes.POINTER(Event), ctypes.c_size_t, ctypes.c_size_t,
                                      ctypes.c_int]
    library.tcpevent_wake.argtypes = library.tcpevent_close.argtypes = [ctypes.c_void_p]
    library.tcpevent_last_error.restype = library.tcpevent_state_name.restype = ctypes.c_char_p
    return library


def endpoint(event, addr, port):
    if event.family == socket.AF_INET:
        return f'{ipaddress.IPv4Address(bytes(addr[:4]))}:{port}'
    return f'[{ipaddress.IPv6Address(bytes(addr))}]:{port}'


# Characters that are not seen, by which one name looks like another, and which str.isprintable lets pass.
UNSEEN = {chr(code) for first, last in ((0x34f, 0x34f), (0x115f, 0x1160), (0x17b4, 0x17b5), (0x180b, 0x180f),
                                        (0x3164, 0x3164), (0xfe00, 0xfe0f), (0xffa0, 0xffa0), (0xe0100, 0xe01ef))
          for code in range(first, last + 1)}


def printable(character):
    # A command is whatever its process says it is: what a terminal, or the reader of a line, would obey must not reach it.
    if character.isprintable() and character != '\\' and character not in UNSEEN:
        return character
    letters = {'\n': '\\n', '\t': '\\t', '\r': '\\r', '\\': '\\\\'}
    return letters.get(character) or ''.join(f'\\x{byte:02x}' for byte in character.encode(errors='surrogateescape'))


def line(library, event):
    seconds, nanoseconds = divmod(event.time_ns, 1_000_000_000)
    clock = time.strftime('%H:%M:%S', time.localtime(seconds))
    command = ''.join(map(printable, event.comm.decode(errors='surrogateescape')))
    old, new = (library.tcpevent_state_name(state).decode() for state in (event.old_state, event.new_state))
    words = [f'{clock}.{nanoseconds // 1_000_000:03}', f'{command}[{event.pid}]',
             endpoint(event, event.local_addr, event.local_port), '->',
             endpoint(event, event.remote_addr, event.remote_port), f'{old}->{new}']
    if event.kind == KIND_CLOSE:
        # What is not known is 0 in the event, and must not look like it here.
        received, sent = ('-' if event.flags & UNCOUNTED else number
                          for number in (event.payload_received, event.payload_sent))
        words.append(f'received {received} sent {sent} in {event.age_ns / 1e9:.3f} s')
        if event.flags & FAILED:
            words.append('given up' if event.flags & GIVEN_UP else 'failed')
        if event.error:
            words.append(errno.errorcode.get(event.error, str(event.error)))
        elif event.flags & ERROR_UNKNOWN and not event.flags & GIVEN_UP:
            words.append('reason unknown')
    return ' '.join(words)


def watch(library, events, words):
    handle = ctypes.c_void_p()
    options = Options(size=ctypes.sizeof(Options), events=events, filter=os.fsencode(' '.join(words)))
    if library.tcpevent_open(options, handle) != 0:
        sys.exit('tcp_watch.py: ' + library.tcpevent_last_error().decode())

    # One thread waits for the signals that end this, which are blocked in all. A wake is not lost if it comes early.
    stopping = threading.Event()

    def wait_for_signal():
        signal.sigwait(STOP)
        stopping.set()
        library.tcpevent_wake(handle)

    threading.Thread(target=wait_for_signal, daemon=True).start()
    read = (Event * 256)()
    while not stopping.is_set():
        count = library.tcpevent_read(handle, read, ctypes.sizeof(Event), len(read), -1)
        if count < 0 and count != -errno.EINTR:
            sys.exit('tcp_watch.py: ' + library.tcpevent_last_error().decode())
        for event in read[:max(count, 0)]:
            if event.size != ctypes.sizeof(Event):
                sys.exit(f'tcp_watch.py: events of this libtcpEvent.so have {event.size} bytes and not '
                         f'{ctypes.sizeof(Event)}: update it')
            print(line(library, event))
        sys.stdout.flush()
    library.tcpevent_close(handle)


STOP = {signal.SIGINT, signal.SIGTERM}

if __name__ == '__main__':
    parser = argparse.ArgumentParser(usage='%(prog)s [--library PATH] [--states] [FILTER WORD...]', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter, add_help=False)
    parser.add_argument('-h', '--help', action='help', help=argparse.SUPPRESS)
    parser.add_argument('--library', help=argparse.SUPPRESS)
    parser.add_argument('--states', action='store_true', help=argparse.SUPPRESS)
    parser.add_argument('words', nargs='*', help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sys.stdout.reconfigure(errors='backslashreplace')
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        library = load(arguments.library)
    except (OSError, AttributeError) as error:
        sys.exit(f'tcp_watch.py: cannot load the library: {error}; give its path with --library')
    watch(library, STATES if arguments.states else CLOSES, arguments.words)
