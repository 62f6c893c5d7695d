"""``rock train``: connects recipe, platform and run, and says in one paragraph what went wrong and how to go on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from rock.domain.errors import ImageNotFound, NotFound, PlatformUnavailable, RockError
from rock.sdk import EnvView, Rock, RunCreate, RunStatus, RunUpdate, ensure_platform
from rock.sdk.home import rock_home
from roll_core.config import Recipe, load_recipe, to_yaml
from roll_core.errors import CheckpointError, RecipeError, RollError, RunPaused, RunStopped

if TYPE_CHECKING:
    from roll_core.rollout.sessions import SessionFactory
    from roll_core.training.loop import Summary
    from roll_core.training.reporting import Reporter
    from roll_core.training.run import RunDirectory, RunIdentity

CONSOLE = Console()


def train(
    recipe: Annotated[str, typer.Argument(help="Recipe: a file, or the name of a shipped one.")] = "",
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the recipe.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the recipe and who goes where, and stop.")] = False,
    resume: Annotated[str, typer.Option(metavar="DIR|last", help="Continue a run from its last checkpoint.")] = "",
    name: Annotated[str, typer.Option(help="Name of the run instead of the recipe's.")] = "",
    url: Annotated[str, typer.Option(help="Address of the platform.", envvar="ROCK_URL")] = "",
    seed: Annotated[int | None, typer.Option(help="Seed of weights, tasks and sampling.")] = None,
    ray: Annotated[str, typer.Option(metavar="ADDRESS|auto", help="Learner and engines on a Ray cluster.")] = "",
) -> None:
    """Train a model by reinforcement learning, as a recipe says.

    Connects to a running platform, or starts one for the run. Ctrl-C stops in order; --resume continues.

    Examples:
      rock train alfworld-tiny
      rock train alfworld-tiny training.steps=50 rollout.alpha=0
      rock train my-recipe.yaml --dry-run
      rock train --resume last
    """
    settings = list(overrides or [])
    if "=" in recipe:  # with --resume the recipe is left out
        recipe, settings = "", [recipe, *settings]
    settings += [f"training.seed={seed}"] if seed is not None else []
    settings += [f"platform.url={url}"] if url else []
    settings += [f"placement.ray={ray}"] if ray else []
    plan = _resumed(resume, recipe, settings) if resume else _new(recipe, settings, name)
    if dry_run:
        CONSOLE.print(to_yaml(plan.recipe), highlight=False, markup=False, soft_wrap=True, end="")
        for line in _placed(plan.recipe):
            CONSOLE.print(f"# {line}", highlight=False, markup=False, soft_wrap=True)
        return
    with _told_how_to_continue(plan):
        summary = asyncio.run(_run(plan))
    _say(plan, summary)


def _placed(recipe: Recipe) -> list[str]:
    """Who goes where, and what memory it takes there."""
    from roll_core.cluster.placement import describe, make_plan
    from roll_core.cluster.shape import expected_shape

    config = expected_shape(recipe)
    if config is None:
        return [f"who goes where: not known before {recipe.model.path!r} is here; fetch it, or give a directory"]
    return describe(make_plan(recipe, config), config)


# --- which run -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Plan:
    recipe: Recipe
    path: Path
    old_run_id: str = ""
    """Of the run that is continued; empty for a new one."""


def _runs_folder(recipe: Recipe | None) -> Path:
    configured = recipe.checkpoint.directory if recipe else ""
    return Path(configured).expanduser().absolute() if configured else rock_home() / "runs"


def _new(recipe: str, overrides: list[str], name: str) -> Plan:
    if not recipe:
        raise RecipeError("Name a recipe to train, such as `rock train alfworld-tiny`, or continue one with --resume.")
    resolved = load_recipe(recipe, overrides)
    if name:
        resolved = resolved.model_copy(update={"name": name})
    label = "".join(c if c.isalnum() or c in "-_." else "-" for c in resolved.name)
    stamp = f"{datetime.now():%Y%m%d-%H%M%S}"
    return Plan(resolved, _runs_folder(resolved) / f"{label}-{stamp}-{secrets.token_hex(2)}")


def _resumed(resume: str, recipe: str, overrides: list[str]) -> Plan:
    from roll_core.training.run import RunDirectory

    if recipe:
        raise RecipeError(
            f"--resume takes the recipe from the run itself: leave out {recipe!r}, or give key=value only."
        )
    path = _last_run() if resume == "last" else Path(resume).expanduser().absolute()
    directory = RunDirectory(path)
    identity = directory.identity()
    return Plan(directory.recipe(overrides), path, identity.run_id)


def _last_run() -> Path:
    folder = _runs_folder(None)
    runs = sorted(folder.glob("*/run.json"), key=lambda p: p.stat().st_mtime)
    if not runs:
        raise CheckpointError(f"There is no run to continue under {folder}; name its directory after --resume.")
    return runs[-1].parent


# --- running ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a run plays and whom it tells."""

    identity: RunIdentity
    sessions: SessionFactory
    reporters: tuple[Reporter, ...]


async def _run(plan: Plan) -> Summary:
    from roll_core.training.loggers import make_loggers
    from roll_core.training.progress import Display
    from roll_core.training.reporting import FileReporter, Reporters
    from roll_core.training.run import RunDirectory, train

    directory = RunDirectory(plan.path)
    _log_to(plan.path / "train.log")
    place = _on_platform if plan.recipe.platform.mode == "rock" else _locally
    with _sigterm_cancels():
        async with place(plan) as placed:
            directory.create(plan.recipe, placed.identity)
            reporter = Reporters(
                FileReporter(plan.path, max_bytes=plan.recipe.checkpoint.records_mb << 20),
                *placed.reporters,
                *make_loggers(plan.recipe, plan.path, placed.identity.run_id),
            )
            with Display(plan.recipe.name, console=CONSOLE) as display:
                ended: RunStatus = "interrupted"
                detail = ""
                try:
                    cache = rock_home() / "demonstrations"
                    summary = await train(plan.recipe, directory, placed.sessions, reporter, display, demo_cache=cache)
                    ended = "completed"
                    await reporter.status("completed", summary=_numbers(summary))
                    return summary
                except RunPaused as pause:
                    ended, detail = "stopped" if pause.for_good else "paused", str(pause)
                    raise
                except (RollError, RockError) as error:
                    ended, detail = "failed", str(error)
                    raise
                finally:
                    await _close(reporter, ended, detail, directory)


def _log_to(file: Path) -> None:
    """What the libraries have to say goes into the run's directory: the terminal belongs to the display."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in ("roll_core", "rock"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False


async def _close(reporter: Reporter, ended: RunStatus, detail: str, directory: RunDirectory) -> None:
    """Tell the last things, unless the platform is the very reason why the run ends."""
    with contextlib.suppress(RollError):
        if ended != "completed":
            await reporter.status(ended, detail or f"kept in {directory.path}")
        await reporter.close()


@asynccontextmanager
async def _on_platform(plan: Plan) -> AsyncIterator[_Place]:
    from roll_core.rollout.reuse import ReusedSessions
    from roll_core.rollout.sessions import SdkSessions, lease_time_s
    from roll_core.training.reporting import SdkReporter
    from roll_core.training.run import RunIdentity

    recipe, platform = plan.recipe, plan.recipe.platform
    launched = await asyncio.to_thread(
        ensure_platform,
        url=platform.url or None,
        runtime=platform.runtime,
        pools={recipe.env.name: recipe.rollout.concurrency},
    )
    try:
        async with Rock(launched.url) as rock:
            env = await _check_env(rock, recipe)
            run_id = await _register(rock, plan)
            leases = SdkSessions(
                rock,
                recipe.env.name,
                run_id=run_id,
                wait_s=platform.wait_s,
                ttl_s=platform.ttl_s,
                reset_s=recipe.rollout.reset_s,
                step_s=recipe.rollout.step_s,
                recovery_s=recipe.rollout.recovery_s,
                needs_s=lease_time_s(recipe.rollout.episode_s, env, recipe.rollout.episodes_per_sandbox),
            )
            sessions = ReusedSessions(leases, recipe.rollout.episodes_per_sandbox)
            reporter = SdkReporter(rock, run_id, outage_s=platform.outage_s)
            try:
                yield _Place(RunIdentity(run_id), sessions, (reporter,))
            finally:
                await sessions.close()
    finally:
        if launched.started:
            with contextlib.suppress(RockError):
                async with Rock(launched.url) as rock:
                    await rock.shutdown()


async def _check_env(rock: Rock, recipe: Recipe) -> EnvView:
    view = await rock.env_view(recipe.env.name)
    if not view.built:
        raise ImageNotFound(
            f"Environment {view.name!r} has not been built.", hint=f"Build it with `rock env build {view.name}`."
        )
    splits = [recipe.env.train_split, *([recipe.env.eval_split] if recipe.evaluation.tasks else [])]
    for split in splits:
        if not view.splits.get(split):
            raise RecipeError(
                f"Environment {view.name!r} has no split {split!r}; it has {', '.join(sorted(view.splits))}."
            )
    return view


async def _register(rock: Rock, plan: Plan) -> str:
    recipe = plan.recipe
    if plan.old_run_id:
        with contextlib.suppress(NotFound):  # a platform with another database does not know the run
            change = RunUpdate(status="starting", detail="", total_steps=recipe.training.steps)
            await rock.update_run(plan.old_run_id, change)
            return plan.old_run_id
    run = RunCreate(
        name=recipe.name,
        recipe=recipe.model_dump(mode="json"),
        total_steps=recipe.training.steps,
        resumed_from=plan.old_run_id,
    )
    return (await rock.create_run(run)).id


@asynccontextmanager
async def _locally(plan: Plan) -> AsyncIterator[_Place]:
    from roll_core.training.play import make_local_sessions
    from roll_core.training.run import RunIdentity

    sessions = make_local_sessions(plan.recipe)
    try:
        yield _Place(RunIdentity(plan.old_run_id or f"run-{secrets.token_hex(5)}"), sessions, ())
    finally:
        await sessions.close()


@contextmanager
def _sigterm_cancels() -> Iterator[None]:
    """A polite kill ends the run as Ctrl-C does: sandboxes given back, episodes booked."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    try:
        loop.add_signal_handler(signal.SIGTERM, task.cancel)
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


# --- the last words --------------------------------------------------------------------------------------------------


@contextmanager
def _told_how_to_continue(plan: Plan) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, asyncio.CancelledError):
        CONSOLE.print(f"Stopped. {_way_on(plan)}", soft_wrap=True, highlight=False)
        raise typer.Exit(130) from None
    except (RollError, RockError) as error:
        raise _stopped(error, plan) from error


def _stopped(error: RollError | RockError, plan: Plan) -> Exception:
    from roll_core.training.run import RunDirectory

    if isinstance(error, RunPaused) and error.for_good:
        return error
    checkpoint = RunDirectory(plan.path).checkpoints(plan.recipe.checkpoint.keep).latest()
    if checkpoint is None and not isinstance(error, PlatformUnavailable):
        return error
    return RunStopped(f"{error} {_way_on(plan)}")


def _way_on(plan: Plan) -> str:
    from roll_core.training.run import RunDirectory

    checkpoint = RunDirectory(plan.path).checkpoints(plan.recipe.checkpoint.keep).latest()
    if checkpoint is None:
        return "There is no checkpoint yet: start the run again."
    home = f"ROCK_HOME={os.environ['ROCK_HOME']} " if os.environ.get("ROCK_HOME") else ""
    return f"The last checkpoint is {checkpoint}; continue with `{home}rock train --resume {plan.path}`."


def _numbers(summary: Summary) -> dict[str, object]:
    rates = {"success_before": summary.success_before, "success_after": summary.success_after}
    numbers: dict[str, object] = {name: rate.as_dict() for name, rate in rates.items() if rate is not None}
    return numbers | {"steps": summary.steps, "elapsed_s": summary.elapsed_s, "advice": summary.advice} | summary.work


def _say(plan: Plan, summary: Summary) -> None:
    CONSOLE.print(
        f"{summary.steps} steps in {summary.elapsed_s:.0f} s; kept in {plan.path}", highlight=False, soft_wrap=True
    )
    for label, rate in (("before", summary.success_before), ("after", summary.success_after)):
        if rate is not None:
            CONSOLE.print(f"success {label:<6} RL: [bold]{rate}[/]", highlight=False, soft_wrap=True)
    if summary.work:
        bubble = {name.removeprefix("bubble/"): v for name, v in summary.work.items() if name.startswith("bubble/")}
        total = bubble.pop("total")
        parts = ", ".join(f"{name.replace('_', ' ')} {share:.0%}" for name, share in bubble.items() if share >= 0.005)
        efficiency = summary.work["roofline/efficiency"]
        CONSOLE.print(
            f"efficiency {efficiency:.0%} of the roofline; idle or in vain {total:.0%}: {parts}", highlight=False
        )
    if summary.advice:
        CONSOLE.print(f"advice: {summary.advice}", highlight=False, soft_wrap=True)
