"""A run from its first demonstration to its last evaluation, or from a checkpoint on. Knows no platform.

The run's directory holds ``recipe.yaml``, ``run.json``, ``tokenizer/``, ``checkpoints/``, and, as bounded files of
JSON lines, ``metrics.jsonl``, ``episodes.jsonl`` and ``events.jsonl``. Before the first checkpoint a resume starts
over; the demonstrations are cached.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from roll_core.cluster.ray_cluster import RayCluster
from roll_core.config import Recipe, load_recipe, to_yaml
from roll_core.errors import CheckpointError
from roll_core.learners.torch_learner import TorchLearner
from roll_core.models import CausalLM, ModelConfig, Tokenizer
from roll_core.rollout.backoff import OutageGuard
from roll_core.rollout.prompting import Prompter
from roll_core.rollout.scheduler import Slots
from roll_core.rollout.sessions import SessionFactory
from roll_core.rollout.tasks import TaskQueue
from roll_core.serving.source import playing
from roll_core.training import assembly, play
from roll_core.training.alerts import Alarms
from roll_core.training.checkpoint import CheckpointStore, load_state
from roll_core.training.demonstrations import Demonstration, collect
from roll_core.training.event_log import EventLog, EventSink
from roll_core.training.imitation import ImitationSettings, imitate, to_sample
from roll_core.training.loop import Summary, Trainer
from roll_core.training.parts import Parts
from roll_core.training.progress import Display
from roll_core.training.reporting import Reporter
from roll_core.training.roles import Roles
from roll_core.training.watchdog import Watch, within
from roll_core.training.worker import Worker


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """Who the run is on the platform; kept so that a resumed run goes on under the same name."""

    run_id: str

    @property
    def id_prefix(self) -> str:
        return f"ep-{self.run_id.removeprefix('run-')}-"


class RunDirectory:
    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self, recipe: Recipe, identity: RunIdentity) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        _replace(self.path / "recipe.yaml", to_yaml(recipe))
        _replace(self.path / "run.json", json.dumps(asdict(identity)))

    def identity(self) -> RunIdentity:
        try:
            return RunIdentity(**json.loads((self.path / "run.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{self.path} is not the directory of a run: {error}.") from error

    def recipe(self, overrides: list[str]) -> Recipe:
        return load_recipe(self.path / "recipe.yaml", overrides)

    def checkpoints(self, keep: int, *, keep_first: bool = False) -> CheckpointStore:
        return CheckpointStore(self.path / "checkpoints", keep, keep_first=keep_first)

    def events(self, recipe: Recipe) -> EventSink:
        limit = recipe.checkpoint.event_log_mb << 20
        return EventLog(self.path, limit) if limit else EventSink()

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer"


def _replace(path: Path, text: str) -> None:
    """A process that dies here leaves the old file or the new one: both are written again at every resume."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


async def train(
    recipe: Recipe,
    directory: RunDirectory,
    sessions: SessionFactory,
    reporter: Reporter,
    display: Display,
    *,
    demo_cache: Path,
) -> Summary:
    """Run ``recipe``, continuing from the newest whole checkpoint in ``directory`` if there is one.

    Raises: RollError or RockError with what made it impossible; everything is given back then.
    """
    if recipe.training.threads:
        torch.set_num_threads(recipe.training.threads)
    torch.manual_seed(recipe.training.seed)
    worker = Worker("learner")
    try:
        return await _Run(recipe, directory, sessions, reporter, display, worker, demo_cache).play()
    finally:
        await worker.close()


@dataclass(frozen=True, slots=True)
class _Run:
    """What :func:`train` was called with, and a thread for the learner."""

    recipe: Recipe
    directory: RunDirectory
    sessions: SessionFactory
    reporter: Reporter
    display: Display
    worker: Worker
    demo_cache: Path

    async def play(self) -> Summary:
        recipe, sessions = self.recipe, self.sessions
        slots = Slots(recipe.rollout.concurrency)
        guard = OutageGuard(free=recipe.rollout.concurrency, rng=random.Random(recipe.training.seed))
        tasks = await sessions.tasks(recipe.env.train_split)
        eval_tasks = await sessions.tasks(recipe.env.eval_split) if recipe.evaluation.tasks else ()
        checkpoints = self.directory.checkpoints(recipe.checkpoint.keep, keep_first=recipe.checkpoint.event_log_mb > 0)
        latest = checkpoints.latest()
        resumed = load_state(latest) if latest else None
        tokenizer, roles, config, cluster = await self._policy(latest, slots, guard)
        make_engine = partial(assembly.make_engine, cluster=cluster) if cluster else assembly.make_engine
        engine = make_engine(recipe, config, roles.weights(), tokenizer)
        identity, events = self.directory.identity(), self.directory.events(recipe)
        prompter = assembly.make_prompter(recipe, tokenizer)
        serving = AsyncExitStack()
        alarms = Alarms(recipe, self.directory.path, identity.run_id, tell=self.display.note)
        try:
            await within("starting the engine", engine.start(), recipe.training.step_deadline_s, lambda: "")
            parts = Parts(
                recipe=recipe,
                engine=engine,
                roles=roles,
                player=await serving.enter_async_context(playing(recipe, sessions, engine, prompter, tokenizer)),
                machine=play.make_machine(recipe, tasks, identity.id_prefix),
                slots=slots,
                guard=guard,
                eval_tasks=eval_tasks,
                checkpoints=checkpoints,
                reporter=self.reporter,
                display=self.display,
                worker=self.worker,
                events=events,
                run_id=identity.run_id,
                tokenizer=tokenizer,
                alarms=alarms,
            )
            return await Trainer(parts, resumed=resumed).run()
        finally:
            await serving.aclose()
            alarms.close()
            events.close()
            roles.close()
            await engine.close()
            if cluster is not None:
                await asyncio.to_thread(cluster.close)

    async def _policy(
        self, latest: Path | None, slots: Slots, guard: OutageGuard
    ) -> tuple[Tokenizer, Roles, ModelConfig, RayCluster | None]:
        """From the checkpoint ``latest``, else from a warm start."""
        recipe = self.recipe
        if latest is None:
            warm = _WarmStart(
                recipe, self.sessions, slots, guard, self.reporter, self.display, self.worker, self.demo_cache
            )
            demo_split = recipe.warm_start.split or recipe.env.train_split
            tokenizer, model = await warm.run(await self.sessions.tasks(demo_split))
            tokenizer.save(self.directory.tokenizer)
        else:
            tokenizer = Tokenizer.load(self.directory.tokenizer)
            model = assembly.make_model(recipe, tokenizer)
        cluster = await asyncio.to_thread(assembly.make_cluster, recipe, model.config)
        try:  # in a thread: a learner elsewhere takes its time to start
            roles = await asyncio.to_thread(partial(assembly.make_roles, cluster=cluster), recipe, model)
            if latest is not None:
                await asyncio.to_thread(roles.load, latest / "learner")
        except BaseException:
            if cluster is not None:
                cluster.close()
            raise
        return tokenizer, roles, model.config, cluster


@dataclass(frozen=True, slots=True)
class _WarmStart:
    """Demonstrations → tokenizer → model → imitation."""

    recipe: Recipe
    sessions: SessionFactory
    slots: Slots
    guard: OutageGuard
    reporter: Reporter
    display: Display
    worker: Worker
    cache: Path

    async def run(self, tasks: Sequence[str]) -> tuple[Tokenizer, CausalLM]:
        await self.reporter.status("warm_start")
        demonstrations = await self._demonstrations(tasks)
        making = self.worker.run(assembly.make_tokenizer, self.recipe, demonstrations)
        tokenizer = await within("making the tokenizer", making, self.recipe.training.step_deadline_s, lambda: "")
        model = assembly.make_model(self.recipe, tokenizer)
        if demonstrations and self.recipe.warm_start.epochs:
            prompter = assembly.make_prompter(self.recipe, tokenizer)
            watch = Watch("a step of imitation", self.recipe.training.step_deadline_s, lambda: "")
            imitating = self.worker.run(self._imitate, model, prompter, demonstrations, watch)
            losses = await watch.over(imitating)
            count = float(len(demonstrations))
            self.reporter.metrics(0, {"warm_start/loss": losses[-1], "warm_start/demonstrations": count})
        return tokenizer, model

    async def _demonstrations(self, tasks: Sequence[str]) -> tuple[Demonstration, ...]:
        count = self.recipe.warm_start.demonstrations
        if not count:
            return ()
        queue = TaskQueue(tasks, self.recipe.training.seed)
        wanted = [queue.take() for _ in range(min(count, len(tasks)))]
        self.display.phase("demonstrations", len(wanted))
        watch = Watch("a demonstration", self.recipe.training.batch_deadline_s, lambda: "")

        def progress(done: int, total: int) -> None:
            watch.progressed()
            self.display.advance(done)

        collecting = collect(
            self.sessions,
            wanted,
            play.demo_settings(self.recipe),
            slots=self.slots,
            guard=self.guard,
            cache=self.cache,
            on_progress=progress,
        )
        return await watch.over(collecting)

    def _imitate(
        self, model: CausalLM, prompter: Prompter, demonstrations: tuple[Demonstration, ...], watch: Watch
    ) -> list[float]:
        warm_start = self.recipe.warm_start
        samples = [
            to_sample(
                d,
                prompter,
                self.recipe.model.max_context,
                observation_weight=warm_start.observation_weight,
            )
            for d in demonstrations
        ]
        settings = ImitationSettings(warm_start.epochs, warm_start.batch_size, warm_start.lr, self.recipe.training.seed)
        config = assembly.learner_config(self.recipe).model_copy(update={"optimizer": warm_start.optimizer})
        learner = TorchLearner(model, config, device=self.recipe.learner.device)
        self.display.phase("imitation", settings.epochs * -(-len(samples) // settings.batch_size))

        def progress(step: int, steps: int, loss: float) -> None:
            self.worker.go_on()
            watch.progressed()
            self.display.advance(step, f"loss {loss:.3f}")

        return imitate(learner, samples, settings, on_progress=progress)
