"""When a stop string has been completed.

Invariants: a generation ends with the first token that completes any of the strings, and keeps it. Text is only
decoded when the newest token could be the one, which keeps stop strings out of the decode loop's cost.
"""

from __future__ import annotations

from collections.abc import Sequence

from roll_core.models.tokenizer import Tokenizer

_BYTES_PER_CHARACTER = 4
"""UTF-8: a byte-level token may be a quarter of a character."""


class StopStrings:
    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        if not all(stops):
            raise ValueError(f"stop strings must not be empty: {list(stops)}")
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._tail = max(len(s) for s in stops) * _BYTES_PER_CHARACTER
        last = {s[-1] for s in stops}
        # A character outside ASCII may be spread over tokens none of which shows it.
        self._finishers: set[int] | None = None
        if all(c.isascii() for c in last):
            self._finishers = {i for i in range(tokenizer.vocab_size) if last & set(tokenizer.decode([i]))}

    def reached(self, sampled_ids: Sequence[int]) -> bool:
        """Whether the last of ``sampled_ids`` completed a stop string."""
        if self._finishers is not None and sampled_ids[-1] not in self._finishers:
            return False
        text = self._tokenizer.decode(sampled_ids[-self._tail :])
        return any(stop in text for stop in self._stops)
