"""The matrix of kernels: which rung of the library's ladder works where, and the results of the live tests there.

guest      runs under the kernel in question, and says line by line what it finds
machines   runs it: here, or in a virtual machine that ../run boots
results    what was found, as JSON; the tables
command    the command
"""
