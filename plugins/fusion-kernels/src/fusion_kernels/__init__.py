"""Compiled kernels: functions of methods and of the engine, with the same bytes in less time."""
