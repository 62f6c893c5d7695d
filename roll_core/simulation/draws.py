"""Random numbers addressed by keys instead of drawn in order: the same sample has the same length and the same latency
whoever plays it and whenever, so that policies are compared on identical work."""

from __future__ import annotations

import math
from statistics import NormalDist

_MASK = (1 << 64) - 1
_NORMAL = NormalDist()


def bits(*keys: int) -> int:
    """64 well mixed bits (splitmix64, Steele et al. 2014) of the keys in order."""
    state = 0
    for key in keys:
        state = (state ^ (key & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state


def uniform(*keys: int) -> float:
    """In the open interval (0, 1)."""
    return ((bits(*keys) >> 11) + 0.5) * 2.0**-53


def normal(*keys: int) -> float:
    return _NORMAL.inv_cdf(uniform(*keys))


def exponential(mean: float, *keys: int) -> float:
    return -mean * math.log(uniform(*keys))
