"""The node's CPU figure: never from a moment too short to mean anything."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest

from rock.node.load import CpuMeter, HostMeter


class Clock:
    """What psutil would say."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.busy_s = self.idle_s = 100.0
        monkeypatch.setattr(psutil, "cpu_count", lambda: 2)
        monkeypatch.setattr(psutil, "cpu_times", self.times)

    def times(self) -> tuple[float, ...]:
        class Times(tuple):  # type: ignore[type-arg]
            pass

        values = {"user": self.busy_s, "idle": self.idle_s, "iowait": 0.0, "guest": self.busy_s, "guest_nice": 0.0}
        times = Times(values.values())
        times.__dict__.update(values)
        return times

    def pass_by(self, busy_s: float, idle_s: float) -> None:
        self.busy_s += busy_s
        self.idle_s += idle_s


def test_it_is_the_share_between_two_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    meter = CpuMeter()
    assert meter.percent == 0.0
    for busy_s, percent in ((1.0, 25.0), (4.0, 100.0), (0.0, 0.0)):
        clock.pass_by(busy_s, 4.0 - busy_s)
        meter.sample()
        assert meter.percent == percent


def test_a_moment_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    meter = CpuMeter()
    clock.pass_by(2.0, 2.0)
    meter.sample()
    clock.pass_by(0.02, 0.0)
    meter.sample()
    assert meter.percent == 50.0
    clock.pass_by(0.0, 1.98)  # what the moment held is not lost
    meter.sample()
    assert meter.percent == 1.0


def test_it_reads_this_machine() -> None:
    meter = CpuMeter()
    meter._total_s -= 1000.0
    meter.sample()
    assert 0.0 <= meter.percent <= 100.0


def test_the_pressure_is_this_machines_in_shares(tmp_path: Path) -> None:
    meter = HostMeter(tmp_path)
    asyncio.run(meter.sample())
    pressure = meter.pressure
    assert 0.0 < pressure.memory < 1.0
    assert 0.0 < pressure.disk <= 1.0
    assert 0.0 <= pressure.cpu <= 1.0
    assert pressure.load_per_cpu >= 0.0


def test_a_directory_that_is_gone_is_no_error(tmp_path: Path) -> None:
    meter = HostMeter(tmp_path / "gone")
    asyncio.run(meter.sample())
    assert meter.pressure.disk == 0.0
