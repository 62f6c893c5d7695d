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

    def away(self, role: str) -> Seat | None:
        """The role's seat on Ray; None where it has none there, or takes no part."""
        return next((seat for seat in self.seats if seat.role == role and seat.bundle is not None), None)

    def device_bytes(self) -> dict[tuple[int | None, str], int]:
        """What each device has to hold, roles that share it together."""
        sums: dict[tuple[int | None, str], int] = {}
        for seat in self.seats:
            for device in seat.devices:
                key = (seat.bundle, device)
                sums[key] = sums.get(key, 0) + seat.need.total_bytes
        return sums


@dataclass(frozen=True, slots=True)
class _Wish:
    """A role before it is known who else is where. ``bundle``: the name of its bundle; empty: with the trainer."""

    role: str
    bundle: str
    device: str
    need: Need
    processes: int = 1
    """Of which each has a device."""
    actors: int = 1
    """Processes that are given processors."""


def make_plan(recipe: Recipe, config: ModelConfig) -> Plan:
    """``config``: the policy's shape."""
    wishes = list(_wishes(recipe, config))
    numbers: dict[str, int] = {}
    for wish in wishes:
        if wish.bundle:
            numbers.setdefault(wish.bundle, len(numbers))
    seats = tuple(_seat(recipe, wish, wishes, numbers) for wish in wishes)
    strategy = "PACK" if recipe.placement.engines == "packed" else "SPREAD"
    return Plan(seats, strategy, tuple(_bundles(seats)))


def _wishes(recipe: Recipe, config: ModelConfig) -> Iterator[_Wish]:
    placement, learner, engine = recipe.placement, recipe.learner, recipe.engine
    engines_away = bool(placement.ray) and placement.engines != "here"
    beside = "learner"  # the name of the learner's bundle
    if not placement.ray or placement.learner == "here":
        beside = ""
    elif placement.learner == "colocated" and engines_away:
        beside = "engine 0"
    yield _Wish("learner", beside, learner.device, learner_need(recipe, config), learner.processes, learner.processes)
    for index, device in enumerate(engine.devices):
        bundle = f"engine {index}" if engines_away else ""
        yield _Wish(f"engine {index}", bundle, device, engine_need(recipe, config), engine.tensor_parallel)

    def follower(role: str, where: str, device: str, need: Need) -> _Wish:
        bundle = beside if where == "colocated" else role if where == "apart" and placement.ray else ""
        return _Wish(role, bundle, device, need)

    policy = Need({"parameters": parameter_count(config) * 4})
    if recipe.critic.count:
        need = critic_need(recipe, config)
        yield follower("critics", placement.critics, recipe.critic.device or learner.device, need)
    if "rhythm" in recipe.algorithm.credit:
        reader = follower("actor_attn", placement.actor_attn, learner.device, policy)
        if reader.bundle or beside or learner.kind != "torch":  # else it reads the learner's own parameters
            yield reader
    if placement.reference != "learner":
        yield follower("reference", placement.reference, learner.device, policy)


def _seat(recipe: Recipe, wish: _Wish, wishes: list[_Wish], numbers: dict[str, int]) -> Seat:
    """On a bundle the GPUs count from 0: Ray shows an actor its own alone. Several roles there share one."""
    cuda = wish.device.startswith("cuda")
    if not wish.bundle:
        return Seat(wish.role, _following(wish.device, wish.processes), wish.need)
    sharing = sum(w.bundle == wish.bundle and w.device.startswith("cuda") for w in wishes)
    gpus = 0.0 if not cuda else float(wish.processes) if sharing == 1 else 1 / sharing
    cpus = float(recipe.placement.cpus * wish.actors)
    devices = _following("cuda" if cuda else wish.device, wish.processes)
    return Seat(wish.role, devices, wish.need, numbers[wish.bundle], cpus, gpus)


def _following(device: str, count: int) -> tuple[str, ...]:
    kind, _, first = device.partition(":")
    if kind != "cuda":
        return (device,)
    return tuple(f"cuda:{int(first or 0) + i}" for i in range(count))


def _bundles(seats: tuple[Seat, ...]) -> Iterator[dict[str, float]]:
    last = max((seat.bundle for seat in seats if seat.bundle is not None), default=-1)
    for number in range(last + 1):
        inside = [seat for seat in seats if seat.bundle == number]
        cpus, gpus = sum(seat.cpus for seat in inside), float(round(sum(seat.gpus for seat in inside)))
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
    critic = recipe.critic.model_copy(update={"device": seat.devices[0]})
    return recipe.model_copy(update={"engine": engine, "learner": learner, "critic": critic})
