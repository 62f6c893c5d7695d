"""When to look again how much a sandbox has written. Pure; times in seconds, sizes in bytes.

A look costs a walk over the sandbox's files, so one that writes little is looked at seldom, and one on its way to its
limit more and more often: half of the time it would need to get there at its present speed.
"""

from __future__ import annotations

SHORTEST_S = 0.25
LONGEST_S = 2.0


def next_look_s(used: int, limit: int, speed: float) -> float:
    """Seconds to the next look at one that has written ``used`` of ``limit``, ``speed`` bytes a second of late.

    Between SHORTEST_S and LONGEST_S; never shorter for one that has more room or is slower.
    """
    if speed <= 0:
        return LONGEST_S
    return min(LONGEST_S, max(SHORTEST_S, 0.5 * (limit - used) / speed))
