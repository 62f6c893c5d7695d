"""Who goes where, and what it needs there: a plan, made from the recipe alone, before anything starts.

Invariants: pure; every role has exactly one seat; a bundle (what Ray reserves as one, on one machine) holds what its
seats need together, and nothing else; whole GPUs, except where learner and engine share one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from roll_core.cluster.memory import Need, critic_need, engine_need, learner_need, parameter_count
from roll_core.config import Recipe
from roll_core.models.qwen import ModelConfig

_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Seat:
    """One role's place. ``bundle``: of Ray's placement group; None: in the trainer's process or beside it."""

    role: str
    devices: tuple[str, ...]
    need: Need
    """On each of the devices."""
    bundle: int | None = None
    cpus: float = 0.0
    gpus: float = 0.0

    @property
    def place(self) -> str:
        where = "here" if self.bundle is None else f"Ray bundle {self.bundle}"
        return f"{where}, {', '.join(self.devices)}"


@dataclass(frozen=True, slots=True)
class Plan:
    seats: tuple[Seat, ...]
    strategy: str = "SPREAD"
    """Of Ray's placement group."""
    bundles: tuple[dict[str, float], ...] = field(default_factory=tuple)

    def seat(self, role: str) -> Seat:
        return next(seat for seat in self.seats if seat.role == role)

    def device_bytes(self) -> dict[tuple[int | None, str], int]:
        """What each device has to hold, roles that share it together."""
        sums: dict[tuple[int | None, str], int] = {}
        for seat in self.seats:
            for device in seat.devices:
                key = (seat.bundle, device)
                sums[key] = sums.get(key, 0) + seat.need.total_bytes
        return sums


def make_plan(recipe: Recipe, config: ModelConfig) -> Plan:
    """``config``: the policy's shape."""
    placement = recipe.placement
    engines_away = bool(placement.ray) and placement.engines != "here"
    learner_away = bool(placement.ray) and placement.learner != "here"
    colocated = learner_away and engines_away and placement.learner == "colocated"
    seats: list[Seat] = []
    bundle = 0
    if learner_away:
        seats.append(_learner_away(recipe, config, bundle, shared=colocated))
        bundle += not colocated
    else:
        seats.append(Seat("learner", learner_devices(recipe, recipe.learner.device), learner_need(recipe, config)))
    for index in range(recipe.engine.count):
        if engines_away:
            seats.append(_engine_away(recipe, config, index, bundle + index, shared=colocated and index == 0))
        else:
            devices = engine_devices(recipe, recipe.engine.devices[index])
            seats.append(Seat(f"engine {index}", devices, engine_need(recipe, config)))
    seats += _followers(recipe, config)
    strategy = "PACK" if placement.engines == "packed" else "SPREAD"
    return Plan(tuple(seats), strategy, tuple(_bundles(seats)))


def learner_devices(recipe: Recipe, device: str) -> tuple[str, ...]:
    """One for each of its processes; on the CPU they share it."""
    return _following(device, recipe.learner.processes)


def engine_devices(recipe: Recipe, device: str) -> tuple[str, ...]:
    return _following(device, recipe.engine.tensor_parallel)


def _following(device: str, count: int) -> tuple[str, ...]:
    kind, _, first = device.partition(":")
    if kind != "cuda":
        return (device,)
    return tuple(f"cuda:{int(first or 0) + i}" for i in range(count))


def _learner_away(recipe: Recipe, config: ModelConfig, bundle: int, *, shared: bool) -> Seat:
    """On its bundle the GPUs count from 0: Ray shows an actor its own alone."""
    learner, need = recipe.learner, learner_need(recipe, config)
    cuda = learner.device.startswith("cuda")
    gpus = (0.5 if shared else float(learner.processes)) if cuda else 0.0
    devices = learner_devices(recipe, "cuda" if cuda else learner.device)
    cpus = float(recipe.placement.cpus * learner.processes)
    return Seat("learner", devices, need, bundle, cpus, gpus)


def _engine_away(recipe: Recipe, config: ModelConfig, index: int, bundle: int, *, shared: bool) -> Seat:
    device = recipe.engine.devices[index]
    cuda = device.startswith("cuda")
    gpus = (0.5 if shared else float(recipe.engine.tensor_parallel)) if cuda else 0.0
    devices = engine_devices(recipe, "cuda" if cuda else device)
    return Seat(f"engine {index}", devices, engine_need(recipe, config), bundle, float(recipe.placement.cpus), gpus)


def _followers(recipe: Recipe, config: ModelConfig) -> Iterator[Seat]:
    """Those that stay with the trainer."""
    if recipe.critic.count:
        device = recipe.critic.device or recipe.learner.device
        yield Seat("critics", (device,), critic_need(recipe, config))
    if "rhythm" in recipe.algorithm.credit and (recipe.learner.kind != "torch" or recipe.placement.ray):
        copy = Need({"parameters": parameter_count(config) * 4})
        yield Seat("actor_attn", (recipe.learner.device,), copy)


def _bundles(seats: list[Seat]) -> Iterator[dict[str, float]]:
    last = max((seat.bundle for seat in seats if seat.bundle is not None), default=-1)
    for number in range(last + 1):
        inside = [seat for seat in seats if seat.bundle == number]
        cpus, gpus = sum(seat.cpus for seat in inside), sum(seat.gpus for seat in inside)
        yield {"CPU": cpus} | ({"GPU": gpus} if gpus else {})


def describe(plan: Plan, config: ModelConfig) -> list[str]:
    """The plan in lines for people."""
    lines = [f"policy: {parameter_count(config) / 1e6:.2f} million parameters"]
    for seat in plan.seats:
        parts = ", ".join(f"{name} {size(count)}" for name, count in seat.need.parts.items() if count)
        each = " each" if len(seat.devices) > 1 else ""
        lines.append(f"{seat.role}: {seat.place}; about {size(seat.need.total_bytes)}{each} ({parts})")
    shared = plan.device_bytes()
    for (bundle, device), total in shared.items():
        roles = [s.role for s in plan.seats if s.bundle == bundle and device in s.devices]
        if len(roles) > 1:
            where = "here" if bundle is None else f"on Ray bundle {bundle}"
            lines.append(f"{device} {where}: {', '.join(roles)}; about {size(total)} together")
    if plan.bundles:
        wanted = "; ".join(
            f"{i}: {', '.join(f'{amount:g} {kind}' for kind, amount in bundle.items())}"
            for i, bundle in enumerate(plan.bundles)
        )
        lines.append(f"Ray reserves {len(plan.bundles)} bundles ({plan.strategy.lower()}): {wanted}")
    return lines


def size(count: int) -> str:
    return f"{count / _GIB:.1f} GiB" if count >= _GIB / 10 else f"{count / 2**20:.1f} MiB"


def at_seat(recipe: Recipe, seat: Seat) -> Recipe:
    """The recipe as the actor in this seat is to read it: Ray shows it its own GPUs alone, counted from 0."""
    devices = (seat.devices[0],) * recipe.engine.count
    engine = recipe.engine.model_copy(update={"device": devices})
    learner = recipe.learner.model_copy(update={"device": seat.devices[0]})
    return recipe.model_copy(update={"engine": engine, "learner": learner})
