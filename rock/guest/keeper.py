"""Level one of supervision: whether an environment's process that died is started anew. Pure; the time is passed in.

Not if it had never become usable, and not again and again: then it stays dead, and the node deals with it. (OTP's
rule; the figures are those of the levels above.)
"""

from __future__ import annotations

import collections

TYPE_CHECKING = False
if TYPE_CHECKING:  # a sandbox starts sooner without the typing module
    from typing import Any

MAX_RESTARTS = 3
WINDOW_S = 60.0
_MAX_CAUSE = 500


class Keeper:
    """``deaths`` so far, and ``cause``, how the last one came about."""

    def __init__(self) -> None:
        self.deaths = 0
        self.cause = ""
        self._recent: collections.deque[Any] = collections.deque(maxlen=MAX_RESTARTS + 1)

    def restarts(self, now: float, cause: str, was_ready: bool) -> bool:
        """Book a death; True if it is to be started anew."""
        self.deaths += 1
        self.cause = cause[:_MAX_CAUSE]
        self._recent.append(now)
        exhausted = len(self._recent) > MAX_RESTARTS and now - self._recent[0] < WINDOW_S
        return was_ready and not exhausted
