"""The driver of the measurements: it starts the programs, reads what the kernel has counted of them, and reports.

programs   the C programs of ../c, and any child process under control
tasks      what /proc tells of a process: CPU time, wake-ups, memory, BPF programs
watchers   who watches connections: nobody, the library, its peers
traffic    connections and sockets to be watched
figures    one function for each thing that is measured
rows       values of rounds, and whether they meet a target
machine    what all this ran on
plot       cost against load, as SVG
report     BENCHMARKS.md
bench      the command
"""
