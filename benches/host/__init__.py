"""The driver of the measurements: it starts the programs, reads the kernel's counters, and reports.

programs   the C programs of ../c, and other child processes
tasks      a process in /proc: CPU time, wake-ups, memory, BPF programs
watchers   watchers of connections: none, the library, its peers
traffic    connections and sockets to be watched
figures    one function for each measurement
rows       values of rounds, compared with targets
machine    a description of the machine
plot       cost against load, as SVG
report     BENCHMARKS.md
bench      the command
"""
