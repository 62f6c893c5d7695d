"""Engines sample tokens. ``TorchEngine`` needs torch; the protocol and its vocabulary do not."""

from roll_core.engines.base import Engine, EngineStats, SamplingParams

__all__ = ["Engine", "EngineStats", "SamplingParams"]
