"""The machine and environment of this process: devices, ranks, memory, kernels, packages."""
