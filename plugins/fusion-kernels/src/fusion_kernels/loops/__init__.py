"""The source of the compiled loops, for numba. Merges load what was compiled, not this package.

The parameters of a loop are addresses and other integers (`int`, 64 bits) and fp32 numbers
(`float`), as its annotations say. Memory is flat and contiguous.
"""
