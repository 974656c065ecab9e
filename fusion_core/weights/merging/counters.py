"""Random numbers that depend only on a key and a counter, so that no cut changes them."""

from __future__ import annotations

import hashlib

import torch


def counter_uniform(key: str, start: int, stop: int) -> torch.Tensor:
    """Return uniform fp32 numbers in [0, 1) for the counters start..stop of a key (splitmix64)."""
    bits = torch.arange(start, stop, dtype=torch.int64).mul_(-7046029254386353131)
    bits.add_(seed_of(key))
    scratch = torch.empty_like(bits)
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        bits.bitwise_xor_(_shift_right(bits, shift, scratch)).mul_(factor)
    bits.bitwise_xor_(_shift_right(bits, 31, scratch))
    return _shift_right(bits, 40, scratch).to(torch.float32).mul_(2.0**-24)


def seed_of(key: str) -> int:
    """Return the 64 signed bits from which a key's numbers derive."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little", signed=True)


def _shift_right(bits: torch.Tensor, by: int, out: torch.Tensor) -> torch.Tensor:
    """Shift right and fill with zeros; torch's int64 alone would fill with the sign."""
    return torch.bitwise_right_shift(bits, by, out=out).bitwise_and_(2 ** (64 - by) - 1)
