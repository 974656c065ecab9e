"""The numbers of four bits that several formats use: e2m1, with the sign in the highest bit."""

from __future__ import annotations

import torch

#: The value of each code.
FP4_VALUES = torch.tensor(
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]
)
