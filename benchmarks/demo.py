"""The main job from nothing to a trained model, and its numbers: what `make demo` runs.

Builds the recipe's environment, brings the platform up, opens the dashboard, then for each seed: warm start by
imitation, evaluation on held-out games, RL in concurrent sandboxes, evaluation on the same games. While RL runs it
removes a few leased sandboxes behind the platform's back: the run must not stop, nor they enter the statistics.

Ctrl-C is left to the command that runs, which gives back what it holds; numbers of seeds that were done are printed.
The last line is one JSON object. ``gain`` is the mean over seeds of success after minus before RL.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from docker.errors import DockerException
from rich.console import Console
from rich.table import Table

from dashboard import server as dashboard
from rock.cli._errors import told_to_people
from rock.runtimes.docker_daemon import new_client
from rock.sdk import Conflict, LedgerState, PlatformUnavailable, RockError, RockSync
from rock.sdk.home import DEFAULT_HOST, DEFAULT_PORT
from rock.wire.models import RunView, SandboxView
from roll_core.config import Recipe, load_recipe

CONSOLE = Console(highlight=False)
ROCK = [sys.executable, "-m", "rock.cli"]
DASHBOARD_PORT = 8501
FAULT_EVERY_S = 20.0
"""Between two removed sandboxes: long enough that each is seen healed on the page before the next."""
SPARE_SANDBOXES = 4
"""Kept ready beside the leased ones, to take the place of a lost one at once."""


@dataclass(frozen=True, slots=True)
class Result:
    """One seed's run as the platform knows it."""

    seed: int
    run: RunView
    wall_s: float
    removed: tuple[str, ...]
    """Sandboxes that were removed under it."""


# --- what goes wrong on purpose --------------------------------------------------------------------------------------


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
    """End the sandbox without telling the platform: as ``docker rm -f``, or by SIGKILL under bubblewrap."""
    if sandbox.runtime == "docker":
        try:
            client = new_client(None, 60.0)
            try:
                client.remove_container(sandbox.handle, force=True)
            finally:
                client.close()
        except DockerException:
            return False
        return True
    first = first_process(sandbox.id)
    with contextlib.suppress(psutil.Error):
        if first is not None:
            first.kill()
            return True
    return False


def first_process(sandbox_id: str) -> psutil.Process | None:
    """Of a bubblewrap sandbox: the deepest process that names it, whose end takes all others with it."""
    found = [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(word.endswith(f"/{sandbox_id}") for word in process.info["cmdline"] or [])
    ]
    with contextlib.suppress(psutil.Error):
        return max(found, key=lambda process: len(process.parents()), default=None)
    return None


def find_run(rock: RockSync, name: str) -> RunView | None:
    return next((r for r in rock.runs() if r.name == name), None)


# --- the commands ----------------------------------------------------------------------------------------------------


def rock(*arguments: str) -> None:
    """Run a `rock` command in the foreground; its own error message is the explanation if it fails."""
    CONSOLE.print(f"[dim]$ rock {' '.join(arguments)}[/dim]", markup=True, soft_wrap=True)
    process = subprocess.Popen([*ROCK, *arguments])
    interrupted = False
    while True:
        try:
            code = process.wait()
            break
        except KeyboardInterrupt:  # the command got it too, and ends in order
            interrupted = True
    if code or interrupted:
        raise SystemExit(code or 130)


def bring_up(recipe: Recipe, runtime: str) -> tuple[str, str]:
    """Build the environment, start the platform or find the one that runs. Returns its address and its runtime."""
    name = recipe.env.name
    chosen = ["--runtime", runtime] if runtime else []
    rock("env", "build", name, *chosen)
    if not os.environ.get("ROCK_URL"):
        port = free_or_any(DEFAULT_PORT, "the platform")
        rock("up", "-d", "--port", str(port), "--pool", f"{name}={SPARE_SANDBOXES}", *chosen)
    with RockSync() as client:
        url, found = client.url, client.health().runtime
    if runtime and found != runtime:
        raise Conflict(
            f"The platform that runs at {url} uses {found}, not {runtime}.", hint="Stop it first: rock down."
        )
    return url, found


def open_page() -> str:
    """Start the dashboard, or find the one that runs; returns its address, empty without one."""
    if dashboard.running() is None:
        port = free_or_any(DASHBOARD_PORT, "the dashboard")
        try:
            rock("dashboard", "--detach", "--port", str(port))
        except SystemExit as error:
            if error.code == 130:
                raise
            CONSOLE.print("[yellow]Going on without the dashboard.[/yellow]")  # it said itself why
    served = dashboard.running()
    return served.url if served else ""


def free_or_any(port: int, what: str) -> int:
    """``port`` if it is free, else 0 (any), saying so. A platform of our own on it is found by `rock up` itself."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((DEFAULT_HOST, port))
        except OSError:
            CONSOLE.print(f"[dim]port {port} is in use: {what} takes a free one if it is not running yet[/dim]")
            return 0
    return port


def train(url: str, recipe: str, seed: int, faults: int, overrides: Sequence[str]) -> Result:
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
    wall_s = time.monotonic() - started
    with RockSync(url) as client:
        run = find_run(client, name)
    if run is None:
        raise PlatformUnavailable(f"The platform at {url} does not know the run {name} that has just ended.")
    return Result(seed, run, wall_s, tuple(saboteur.removed))


# --- what came of it -------------------------------------------------------------------------------------------------


def report(url: str, results: Sequence[Result]) -> dict[str, Any]:
    """Print the table for people and return the numbers."""
    table = Table(title="Held-out games won, with 95 % intervals", title_justify="left")
    for column in ("seed", "before RL", "after RL", "gain", "games", "minutes", "sandboxes removed", "void episodes"):
        table.add_column(column, justify="right")
    rows = []
    with RockSync(url) as client:
        for result in results:
            before, after = result.run.summary["success_before"], result.run.summary["success_after"]
            ledger = client.ledger(result.run.id)
            void = ledger.accounts.get(LedgerState.VOID, 0)
            gain = after["rate"] - before["rate"]
            table.add_row(
                str(result.seed), _percent(before), _percent(after), f"{100 * gain:+.1f}", str(after["n"]),
                f"{result.wall_s / 60:.1f}", str(len(result.removed)), str(void),
            )  # fmt: skip
            rows.append(
                {
                    "seed": result.seed, "run": result.run.id, "success_before": before, "success_after": after,
                    "gain": gain, "wall_s": round(result.wall_s, 1), "sandboxes_removed": len(result.removed),
                    "void": void, "dispatched": ledger.dispatched,
                    "accounts": {state.value: count for state, count in ledger.accounts.items()},
                }
            )  # fmt: skip
    CONSOLE.print(table)
    gains = [row["gain"] for row in rows]
    return {"gain": statistics.fmean(gains), "gain_min": min(gains), "gain_max": max(gains), "runs": rows}


def _percent(value: Mapping[str, float]) -> str:
    return f"{100 * value['rate']:.1f} % [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"


def rock_command() -> str:
    """How the reader calls `rock`: by name if the shell finds it, else by its path."""
    return "rock" if shutil.which("rock") else str(Path(sys.prefix, "bin", "rock"))


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", default="alfworld-tiny", help="a file, or the name of a shipped one")
    parser.add_argument("--seeds", default="0", help="comma-separated; one run each (default: 0)")
    parser.add_argument("--faults", type=int, default=3, help="sandboxes to remove during each run (default: 3)")
    parser.add_argument("--runtime", default="", help="docker or bubblewrap (default: Docker where it runs)")
    parser.add_argument("--down", action="store_true", help="stop platform and dashboard at the end")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="recipe overrides")
    parsed = parser.parse_intermixed_args(argv)
    try:
        parsed.seeds = [int(seed) for seed in parsed.seeds.split(",")]
    except ValueError:
        parser.error(f"--seeds {parsed.seeds!r}: expected numbers with commas between them, such as 0,1,2")
    return parsed


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    recipe = load_recipe(args.recipe, args.overrides)  # a mistake in it should not show after minutes of building
    if not recipe.evaluation.tasks:
        raise Conflict("The demo compares success before and after RL.", hint="Set evaluation.tasks above 0.")
    started = time.monotonic()
    try:
        url, runtime = bring_up(recipe, args.runtime)
        page = open_page()
        if page:
            CONSOLE.print(f"Watch it learn: [bold]{page}[/bold]\n")
        results: list[Result] = []
        try:
            for seed in args.seeds:
                results.append(train(url, args.recipe, seed, args.faults, args.overrides))
        finally:
            numbers = report(url, results) if results else None
    finally:
        if args.down:
            for command in (("dashboard", "--stop"), ("down",)):
                rock(*command)
    if not args.down:
        CONSOLE.print(
            (f"\nThe whole story on one page: [bold]{page}[/bold]\n" if page else "\n")
            + f"Everything stays up (platform: {url}). Sandboxes: [bold]{rock_command()} ps[/bold]   "
            "Stop it all: [bold]make down[/bold]\n",
            soft_wrap=True,
        )
    assert numbers is not None
    numbers |= {"runtime": runtime, "recipe": args.recipe, "wall_s": round(time.monotonic() - started, 1)}
    print(json.dumps(numbers))


if __name__ == "__main__":
    with told_to_people():
        main()
