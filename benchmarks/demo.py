"""The main job from nothing to a trained model, and its numbers: what `make demo` runs.

Builds the ALFWorld bundle and image, brings the platform up, opens the dashboard, then for each seed: warm start by
imitation, evaluation on held-out games, RL in concurrent sandboxes, evaluation on the same games. While RL runs it
removes a few leased sandboxes behind the platform's back: the run must not stop, nor they enter the statistics.

The last line is one JSON object. ``gain`` is the mean over seeds of success after minus before RL.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rock.sdk import RockError, RockSync
from rock.wire.models import RunView, SandboxView

CONSOLE = Console()
ROCK = [sys.executable, "-m", "rock.cli.main"]
FAULT_EVERY_S = 20.0
"""Between two removed sandboxes: long enough that each is seen healed on the page before the next."""


@dataclass
class Saboteur:
    """Removes leased sandboxes of a run while it trains, as a crashing host would, and remembers which."""

    url: str
    run_name: str
    wanted: int
    removed: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        with RockSync(self.url) as rock:
            while len(self.removed) < self.wanted and not self._stop.wait(FAULT_EVERY_S):
                with contextlib.suppress(RockError):
                    self._strike(rock)

    def _strike(self, rock: RockSync) -> None:
        run = find_run(rock, self.run_name)
        if run is None or run.status != "training":
            return
        victims = [s for s in rock.sandboxes() if s.state == "leased" and s.run_id == run.id]
        if victims and remove_behind_its_back(victims[0]):
            self.removed.append(victims[0].id)

    def stop(self) -> None:
        self._stop.set()


def remove_behind_its_back(sandbox: SandboxView) -> bool:
    """End the sandbox without telling the platform: ``docker rm -f``, or SIGKILL under bubblewrap."""
    if sandbox.runtime == "docker":
        command = ["docker", "rm", "-f", sandbox.handle]
        return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0
    pid = sandbox.handle.split(":")[0]
    if not pid.isdigit():
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(pid), signal.SIGKILL)
        return True
    return False


def find_run(rock: RockSync, name: str) -> RunView | None:
    return next((r for r in rock.runs() if r.name == name), None)


def rock(*arguments: str) -> None:
    """Run a `rock` command in the foreground; its own error message is the explanation if it fails."""
    CONSOLE.print(f"[dim]$ rock {' '.join(arguments)}[/dim]")
    done = subprocess.run([*ROCK, *arguments], check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def train(url: str, recipe: str, seed: int, faults: int, overrides: list[str]) -> tuple[RunView, float, list[str]]:
    """One run. Returns it as the platform knows it, its wall seconds, and the sandboxes that were removed under it."""
    name = f"demo-{time.strftime('%Y%m%d-%H%M%S')}-seed{seed}"
    saboteur = Saboteur(url, name, faults)
    thread = threading.Thread(target=saboteur.run, name="saboteur", daemon=True)
    thread.start()
    started = time.monotonic()
    try:
        rock("train", recipe, "--name", name, "--seed", str(seed), "--url", url, *overrides)
    finally:
        saboteur.stop()
        thread.join(timeout=90)
    with RockSync(url) as client:
        run = find_run(client, name)
    if run is None:
        raise SystemExit(f"Error: the platform at {url} does not know the run {name} that has just ended.")
    return run, time.monotonic() - started, saboteur.removed


def report(url: str, results: list[tuple[int, RunView, float, list[str]]]) -> dict[str, object]:
    """Print the table for people and return the numbers."""
    table = Table(title="Held-out games won, with 95 % intervals", title_justify="left")
    for column in ("seed", "before RL", "after RL", "gain", "games", "minutes", "sandboxes removed", "void episodes"):
        table.add_column(column, justify="right")
    rows = []
    with RockSync(url) as client:
        for seed, run, wall_s, removed in results:
            before, after = run.summary["success_before"], run.summary["success_after"]
            ledger = client.ledger(run.id)
            gain = after["rate"] - before["rate"]
            void = ledger.accounts.get("void", 0)  # type: ignore[call-overload]
            table.add_row(
                str(seed), _percent(before), _percent(after), f"{100 * gain:+.1f}", str(after["n"]),
                f"{wall_s / 60:.1f}", str(len(removed)), str(void),
            )  # fmt: skip
            rows.append(
                {
                    "seed": seed, "success_before": before, "success_after": after, "gain": gain, "wall_s": wall_s,
                    "sandboxes_removed": len(removed), "void": void, "dispatched": ledger.dispatched,
                    "accounts": {str(k): v for k, v in ledger.accounts.items()},
                }
            )  # fmt: skip
    CONSOLE.print(table)
    gains = [float(r["gain"]) for r in rows]
    return {"gain": statistics.fmean(gains), "gain_min": min(gains), "gain_max": max(gains), "runs": rows}


def _percent(value: dict[str, float]) -> str:
    return f"{100 * value['rate']:.1f} % [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument("--recipe", default="alfworld-tiny")
    parser.add_argument("--seeds", default="0", help="comma-separated; one run each (default: 0)")
    parser.add_argument("--faults", type=int, default=3, help="sandboxes to remove during each run (default: 3)")
    parser.add_argument("--runtime", default="", help="docker or bubblewrap (default: Docker where it runs)")
    parser.add_argument("--down", action="store_true", help="stop platform and dashboard at the end")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="recipe overrides")
    args = parser.parse_args()

    started = time.monotonic()
    runtime = ["--runtime", args.runtime] if args.runtime else []
    rock("env", "build", "alfworld", *runtime)
    rock("up", "-d", *runtime)
    with RockSync() as client:
        url, health = client.url, client.health()
    rock("dashboard", "--detach")
    results = [
        (seed, *train(url, args.recipe, seed, args.faults, args.overrides))
        for seed in (int(s) for s in args.seeds.split(","))
    ]
    numbers = report(url, results)
    numbers |= {"runtime": health.runtime, "recipe": args.recipe, "wall_s": time.monotonic() - started}
    here = Path(sys.prefix, "bin", "rock")
    if args.down:
        rock("dashboard", "--stop")
        rock("down")
    else:
        CONSOLE.print(
            f"\nThe whole story on one page: [bold]http://127.0.0.1:8501[/bold]  (platform: {url})\n"
            f"Everything stays up. Sandboxes: [bold]{here} ps[/bold]   Stop it all: [bold]make down[/bold]\n"
        )
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
