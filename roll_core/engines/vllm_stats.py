"""What vLLM counts of itself, as :class:`~roll_core.engines.base.EngineStats` wants it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Meter:
    """Filled by vLLM after every pass, and by :meth:`enter` and :meth:`leave` around each request."""

    generated_tokens: int = 0
    prefilled_tokens: int = 0
    cached_tokens: int = 0
    running: int = 0
    """In vLLM's present batch."""
    waiting: int = 0
    resident: int = 0
    """Requests that have come and not gone, whatever vLLM said last."""
    now_s: Callable[[], float] = time.perf_counter
    _busy_s: float = 0.0
    _busy_since_s: float = field(default=0.0)

    def enter(self) -> None:
        if self.resident == 0:
            self._busy_since_s = self.now_s()
        self.resident += 1

    def leave(self) -> None:
        self.resident -= 1
        if self.resident == 0:
            self._busy_s += self.now_s() - self._busy_since_s
            self.running = self.waiting = 0

    def busy_s(self) -> float:
        """Seconds with any request in the engine."""
        return self._busy_s + (self.now_s() - self._busy_since_s if self.resident else 0.0)

    def record(self, scheduler: Any, iteration: Any) -> None:
        if scheduler is not None:
            self.running = scheduler.num_running_reqs
            self.waiting = scheduler.num_waiting_reqs + getattr(scheduler, "num_skipped_waiting_reqs", 0)
        if iteration is not None:
            prompt = iteration.prompt_token_stats
            self.generated_tokens += iteration.num_generation_tokens
            self.prefilled_tokens += prompt.computed
            self.cached_tokens += prompt.total - prompt.computed


def meter_class(meter: Meter) -> type:
    """A logger in vLLM's sense that writes into ``meter``."""
    from vllm.v1.metrics.loggers import StatLoggerBase

    class _Logger(StatLoggerBase):  # type: ignore[misc]  # vLLM is not followed
        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None: ...

        def record(
            self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
        ) -> None:
            meter.record(scheduler_stats, iteration_stats)

        def log_engine_initialized(self) -> None: ...

    return _Logger
