"""Random numbers that depend on a key and a counter alone, so that no cut changes them."""

from __future__ import annotations

import hashlib

import torch


def counter_uniform(key: str, start: int, stop: int) -> torch.Tensor:
    """Uniform fp32 numbers in [0, 1) for the counters start..stop of a key (splitmix64)."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little", signed=True)
    bits = _splitmix(torch.arange(start, stop, dtype=torch.int64), seed)
    return bits.to(torch.float32).mul_(2.0**-24)


def _splitmix(counters: torch.Tensor, seed: int) -> torch.Tensor:
    """Make 24 random bits of each counter, in its place."""
    bits, scratch = counters.mul_(-7046029254386353131).add_(seed), torch.empty_like(counters)
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        bits.bitwise_xor_(_shifted(bits, shift, scratch)).mul_(factor)
    bits.bitwise_xor_(_shifted(bits, 31, scratch))
    return _shifted(bits, 40, scratch)


def _shifted(bits: torch.Tensor, by: int, out: torch.Tensor) -> torch.Tensor:
    """Shift right without the sign, which torch's int64 would carry along."""
    return torch.bitwise_right_shift(bits, by, out=out).bitwise_and_(2 ** (64 - by) - 1)
