"""The matrix of kernels: which rung of the library's ladder holds where, and what the live tests say of it there.

guest      runs under the kernel in question, and says line by line what it finds
machines   runs it: here, or in a virtual machine that ../run boots
results    what was found, as JSON; the tables
command    the command
"""
