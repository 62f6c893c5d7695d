"""How busy the machine is: sampled in one place, so that whoever looks sees the same number, over a proper interval."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import psutil

from rock.wire.models import Pressure

SAMPLE_EVERY_S = 2.0
LOADAVG = Path("/proc/loadavg")
# The kernel counts in ticks of 10 ms: over a shorter time a share of busy ticks is noise, 0 % or 100 %.
_SHORTEST_S = 0.5


class CpuMeter:
    """``percent``: the share of all processors' time that was not idle, between the last two samples."""

    def __init__(self) -> None:
        self.percent = 0.0
        self._busy_s, self._total_s = _times()

    def sample(self) -> None:
        busy_s, total_s = _times()
        passed_s = total_s - self._total_s
        if passed_s < _SHORTEST_S * (psutil.cpu_count() or 1):
            return
        self.percent = round(100.0 * min(1.0, max(0.0, (busy_s - self._busy_s) / passed_s)), 1)
        self._busy_s, self._total_s = busy_s, total_s


class HostMeter:
    """``pressure`` as of the last sample; the disk is the one that ``run_dir`` is on."""

    def __init__(self, run_dir: Path) -> None:
        self.cpu = CpuMeter()
        self.pressure = Pressure()
        self.crowd = 0.0
        """Processes that want a processor, per processor: now, or within the last minute if that is more."""
        self._run_dir = run_dir

    async def sample(self) -> None:
        self.cpu.sample()
        self.crowd = max(os.getloadavg()[0], _runnable()) / (psutil.cpu_count() or 1)
        memory = psutil.virtual_memory()
        self.pressure = Pressure(
            cpu=round(self.cpu.percent / 100, 3),
            memory=round(1 - memory.available / memory.total, 3),
            load_per_cpu=round(os.getloadavg()[0] / (psutil.cpu_count() or 1), 2),
            disk=await asyncio.to_thread(_disk_share, self._run_dir),  # a file system may be slow to answer
        )


def _runnable() -> int:
    """Who runs or wants to at this moment, besides us; 0 where the kernel does not say."""
    try:
        running = LOADAVG.read_text().split()[3].partition("/")[0]
    except (OSError, IndexError):
        return 0
    return max(0, int(running) - 1)


def _disk_share(path: Path) -> float:
    try:
        return round(float(psutil.disk_usage(str(path)).percent) / 100, 3)
    except OSError:
        return 0.0


def _times() -> tuple[float, float]:
    """Busy and all processor seconds since the machine started. Guests' time is in user's already."""
    times = psutil.cpu_times()
    total_s = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return total_s - times.idle - getattr(times, "iowait", 0.0), total_s
