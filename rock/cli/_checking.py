"""`rock env check`: the episodes it plays, and what it concludes from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rock.cli._client import ask_at
from rock.cli._playing import Trace, first_difference, play
from rock.domain.errors import RockError

if TYPE_CHECKING:
    from rock.sdk import Rock


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    ok: bool
    seconds: float
    found: str

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def check_environment(
    name: str, task: str, seed: int, steps: int, actions: Sequence[str], build: Callable[[], object]
) -> list[Row]:
    """Raises NotFound for an unknown environment; what goes wrong with a known one is a row."""
    from rock.runtimes.bundles import EnvCatalog
    from rock.sdk import ensure_platform
    from rock.sdk.home import rock_home

    catalog = EnvCatalog(rock_home())
    bundle = catalog.built(name)
    if bundle is None or bundle.stale:
        build()
    chosen = task or next(iter(catalog.tasks(name)), "")
    url, started = ensure_platform()
    try:
        return ask_at(url, lambda rock: _rows(rock, name, chosen, seed, steps, actions))
    finally:
        if started:
            ask_at(url, lambda rock: rock.shutdown())


async def _rows(rock: Rock, name: str, task: str, seed: int, steps: int, actions: Sequence[str]) -> list[Row]:
    rows: list[Row] = []
    traces: list[Trace] = []
    for _ in range(2):
        try:
            traces.append(await play(rock, name, task, seed, steps, actions))
        except RockError as error:
            rows.append(
                Row("play", False, 0.0, f"{type(error).__name__} ({error.fault}): {error} {error.cause[-300:]}")
            )
            break
    if traces:
        first = traces[0]
        rows[:0] = [
            Row("lease", True, first.lease_s, f"sandbox {first.sandbox_id}"),
            Row("reset", True, first.reset_s, f"task {task or '(its own choice)'}, seed {seed}"),
            Row("step", True, first.longest_step_s, _steps(first)),
        ]
    if len(traces) == 2:
        difference = first_difference(*traces)
        again = traces[1]
        rows.append(
            Row(
                "same again",
                not difference,
                again.reset_s + sum(again.step_s),
                difference or "the same, in another sandbox",
            )
        )
    return rows


def _steps(trace: Trace) -> str:
    ended = "the episode ended" if trace.ended else "the episode goes on"
    return f"{len(trace.step_s)} steps, {ended}; the longest took the time shown"
