"""The run as a person sees it in the terminal: one live panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_SMOOTHING = 0.8
_BARS = "▁▂▃▄▅▆▇█"
_PLAIN_EVERY_S = 5.0


def duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def sparkline(values: list[float], width: int = 40) -> str:
    """The last ``width`` values between 0 and 1."""
    return "".join(_BARS[min(7, max(0, int(v * 8)))] for v in values[-width:])


@dataclass(slots=True)
class _Numbers:
    phase: str = "starting"
    done: int = 0
    total: int = 0
    detail: str = ""
    phase_started_s: float = field(default_factory=time.monotonic)
    done_at_start: int = 0
    success: list[float] = field(default_factory=list)
    latest: dict[str, float] = field(default_factory=dict)
    voids: float = 0.0
    notes: list[str] = field(default_factory=list)


class Display:
    """``with Display(name) as display``. Safe to call from the learner's thread: it only stores numbers."""

    def __init__(self, name: str, *, console: Console | None = None) -> None:
        self._name = name
        self._console = console or Console()
        self._numbers = _Numbers()
        self._live: Live | None = None
        self._printed_s = 0.0

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            self._live = Live(self, console=self._console, refresh_per_second=4, transient=False)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def phase(self, name: str, total: int = 0, done: int = 0) -> None:
        numbers = self._numbers
        numbers.phase, numbers.total, numbers.done, numbers.done_at_start = name, total, done, done
        numbers.detail, numbers.phase_started_s = "", time.monotonic()
        self._plain(f"{name}" + (f" ({total})" if total else ""))

    def advance(self, done: int, detail: str = "") -> None:
        self._numbers.done, self._numbers.detail = done, detail
        if time.monotonic() - self._printed_s > _PLAIN_EVERY_S or done == self._numbers.total:
            self._plain(f"{self._numbers.phase}: {done}/{self._numbers.total} {detail}".rstrip())

    def step(self, step: int, values: dict[str, float]) -> None:
        numbers = self._numbers
        numbers.done, numbers.latest = step, values
        if "rollout/success" in values:
            before = numbers.success[-1] if numbers.success else values["rollout/success"]
            numbers.success.append(_SMOOTHING * before + (1 - _SMOOTHING) * values["rollout/success"])
        self._plain(f"step {step}/{numbers.total}  {self._line()}")

    def note(self, text: str) -> None:
        """Something to keep on the screen, such as a success rate."""
        self._numbers.notes.append(text)
        self._plain(text)

    def _plain(self, text: str) -> None:
        if self._live is None:
            self._printed_s = time.monotonic()
            self._console.print(Text(f"[{self._name}] {text}"), soft_wrap=True)

    # --- what is shown -----------------------------------------------------------------------------------------------

    def _line(self) -> str:
        return "  ".join(f"{label} {value}" for label, value in self._cells())

    def _cells(self) -> list[tuple[str, str]]:
        values, numbers = self._numbers.latest, self._numbers
        cells = []
        if numbers.success:
            now = f"{values['rollout/success']:.0%}" if "rollout/success" in values else "–"
            cells.append(("success", f"{now} (smooth {numbers.success[-1]:.0%})"))
        cells += [
            ("reward", f"{values.get('rollout/reward', 0.0):.2f}"),
            ("void", f"{values.get('rollout/void_rate', 0.0):.1%}"),
            ("turns", f"{values.get('rollout/turns', 0.0):.1f}"),
            ("tokens/s", f"{values.get('rollout/tokens_per_s', 0.0):,.0f}"),
            ("staleness", f"{values.get('staleness/mean', 0.0):.2f} (max {values.get('staleness/max', 0.0):.0f})"),
            ("left", self._left()),
        ]
        return cells

    def _left(self) -> str:
        numbers = self._numbers
        finished = numbers.done - numbers.done_at_start
        if not numbers.total or not finished:
            return "–"
        return duration((time.monotonic() - numbers.phase_started_s) / finished * (numbers.total - numbers.done))

    def __rich__(self) -> RenderableType:
        numbers = self._numbers
        head = Table.grid(expand=True)
        head.add_column()
        head.add_column(justify="right")
        count = f"{numbers.done}/{numbers.total}" if numbers.total else ""
        elapsed = duration(time.monotonic() - numbers.phase_started_s)
        head.add_row(Text(numbers.phase, style="bold"), Text(f"{count}  {elapsed}  left {self._left()}", style="dim"))
        rows: list[RenderableType] = [head]
        if numbers.total:
            rows.append(ProgressBar(total=numbers.total, completed=numbers.done))
        if numbers.detail:
            rows.append(Text(numbers.detail, style="dim"))
        if numbers.latest:
            rows.append(self._grid())
        if numbers.success:
            rows.append(Text.assemble(("success ", "dim"), (sparkline(numbers.success), "green")))
        rows += [Text(f"• {note}") for note in numbers.notes]
        return Panel(Group(*rows), title=f"[bold]{self._name}[/]", border_style="cyan")

    def _grid(self) -> Table:
        cells = [(label, value) for label, value in self._cells() if label != "left"]
        grid = Table.grid(expand=True, padding=(0, 2))
        for _ in cells:
            grid.add_column(justify="center", ratio=1)
        grid.add_row(*[Text(label, style="dim") for label, _ in cells])
        styles = {
            "success": "bold green",
            "void": "bold red" if self._numbers.latest.get("rollout/void_rate") else "bold",
        }
        grid.add_row(*[Text(value, style=styles.get(label, "bold")) for label, value in cells])
        return grid
