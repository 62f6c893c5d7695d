"""Numbers and times as people read them. Always UTC, always with a unit, never more digits than mean something."""

from __future__ import annotations

import math
from datetime import UTC, datetime

NOTHING = "–"


def percent(share: float | None, digits: int = 0) -> str:
    """``0.4137`` → ``41%``. Only nothing reads as 0%, and only everything as 100%."""
    if share is None or not math.isfinite(share):
        return NOTHING
    value = share * 100
    floor = 10.0**-digits
    if 0 < value < floor:
        return f"<{floor:.{digits}f}%"
    if 100 - floor < value < 100:
        return f">{100 - floor:.{digits}f}%"
    return f"{value:.{digits}f}%"


def number(value: float | None, digits: int = 3) -> str:
    """``digits`` significant digits; thousands separated; large numbers shortened to k and M."""
    if value is None or not math.isfinite(value):
        return NOTHING
    size = abs(value)
    if size >= 10_000_000:
        return f"{value / 1e6:,.0f}M"
    if size >= 1_000_000:
        return f"{value / 1e6:.1f}M"
    if size >= 100_000:
        return f"{value / 1e3:,.0f}k"
    if value == int(value) and size < 100_000:
        return f"{int(value):,}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def duration(seconds: float | None) -> str:
    """``4 ms``, ``2.3 s``, ``45 s``, ``6 min``, ``2 h 05 min``, ``3 d 4 h``."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    seconds = max(0.0, seconds)
    if 0 < seconds < 0.95:
        return f"{max(1, round(seconds * 1000))} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def size(size_bytes: float) -> str:
    """Binary units: ``512 MiB``, ``1.5 GiB``."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def utc(moment: datetime) -> datetime:
    """``moment`` in UTC; a naive one is taken to be UTC already."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def clock(moment: datetime, now: datetime | None = None) -> str:
    """``12:31:05 UTC``; with the date in front when that is not today's."""
    moment = utc(moment)
    if now is not None and moment.date() != utc(now).date():
        return moment.strftime("%d %b %H:%M:%S UTC")
    return moment.strftime("%H:%M:%S UTC")


def ago(moment: datetime, now: datetime) -> str:
    seconds = (utc(now) - utc(moment)).total_seconds()
    return "just now" if seconds < 2 else f"{duration(seconds)} ago"


def plural(n: int, singular: str, many: str = "") -> str:
    """``1 sandbox``, ``3 sandboxes``."""
    return f"{n:,} {singular if n == 1 else many or singular + 's'}"
