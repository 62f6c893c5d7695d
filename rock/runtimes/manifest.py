"""``env.toml``: what an environment says about itself. Unknown keys are errors that name the nearest known one."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from rock.domain.egress import MAX_RULES, parse_rule
from rock.domain.errors import InvalidRequest
from rock.wire.models import Limits, PoolSize

FILE = "env.toml"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BundleSection(_Section):
    requirements: str = ""
    """File beside env.toml, installed with ``pip install --no-deps --target``; list everything in it."""
    optional_requirements: str = ""
    """The same for what can be done without, such as what needs a compiler: a failure is a warning."""
    optional_for: str = ""
    """What does not work without them, for that warning."""
    prepare: str = ""
    """Module run once as ``python -m MODULE --out DIR [--quick]``; writes DIR/data and DIR/tasks.json."""


class LimitsSection(_Section):
    cpus: Annotated[float, Field(gt=0, le=256)] = 1.0
    memory_mb: Annotated[int, Field(ge=16)] = 512
    pids: Annotated[int, Field(ge=8)] = 128
    tmpfs_mb: Annotated[int, Field(ge=1)] = 64
    disk_mb: Annotated[int, Field(ge=1)] = 4096
    """Of files on the disk, where the root is writable."""

    def limits(self) -> Limits:
        return Limits(
            cpus=self.cpus,
            memory_bytes=self.memory_mb << 20,
            pids=self.pids,
            tmpfs_bytes=self.tmpfs_mb << 20,
            disk_bytes=self.disk_mb << 20,
        )


class PoolSection(_Section):
    """How many sandboxes are kept ready. Between ``min`` and ``max`` demand decides."""

    ready: Annotated[int, Field(ge=0)] = 2
    """While the environment is in use."""
    min: Annotated[int, Field(ge=0)] = 0
    """Even when nobody has used it for long."""
    max: Annotated[int, Field(ge=0)] = 0
    """However high the demand; 0: eight times ``ready``."""

    @model_validator(mode="after")
    def _ordered(self) -> PoolSection:
        if self.max and self.max < max(self.ready, self.min):
            raise ValueError(f"max must be 0 or at least ready={self.ready} and min={self.min}")
        return self

    def size(self) -> PoolSize:
        return PoolSize(ready=self.ready, minimum=self.min, maximum=self.max)


class DeadlinesSection(_Section):
    reset_s: Annotated[float, Field(gt=0)] = 60.0
    step_s: Annotated[float, Field(gt=0)] = 30.0
    episode_s: Annotated[float, Field(ge=0)] = 0.0
    """A whole episode, its scoring and its clean-up; 0: no limit known. A lease that is asked for less is refused."""
    scoring_s: Annotated[float, Field(ge=0)] = 0.0
    cleanup_s: Annotated[float, Field(ge=0)] = 0.0


class ObjectivesSection(_Section):
    """Within how many seconds 95 of 100 should be done. The dashboard holds what was measured against it; nothing is
    refused for missing it."""

    open_s: Annotated[float, Field(gt=0)] = 1.0
    """From asking for a sandbox to having it."""
    reset_s: Annotated[float, Field(gt=0)] = 5.0
    step_s: Annotated[float, Field(gt=0)] = 1.0


class SnapshotSection(_Section):
    """For ``recovery = "snapshot"``."""

    every_steps: Annotated[int, Field(ge=1)] = 10
    """Steps between two snapshots: each takes 0.4 s while the agent thinks, and saves replaying what was before it."""


class SandboxSection(_Section):
    """Anything looser than the default shows in `rock ps`."""

    network: Literal["none", "bridge"] = "none"
    egress: Annotated[tuple[str, ...], Field(max_length=MAX_RULES)] = ()
    """Hosts that it reaches by HTTP and HTTPS without a network: ``pypi.org``, ``*.example.org``, ``host:8443``."""
    read_only: bool = True
    user: str = ""
    environ: dict[str, str] = Field(default_factory=dict)

    @field_validator("egress")
    @classmethod
    def _rules(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(parse_rule(text)) for text in value)

    @model_validator(mode="after")
    def _egress_without_network(self) -> SandboxSection:
        if self.egress and self.network != "none":
            raise ValueError(f'with network = "{self.network}" everything is reached; leave out one of the two')
        return self


class TaskImagesSection(_Section):
    """For tasks that are played in an image of their own."""

    user: str = ""
    """Instead of ``[sandbox] user``: in such images the files often belong to root."""


class EnvManifest(_Section):
    name: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9._-]*[a-z0-9])?$")]
    version: str
    description: str = ""
    entry: Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")]
    recovery: Literal["replay", "snapshot", "none"] = "none"
    judge: Annotated[str, Field(pattern=r"^([a-z0-9]([a-z0-9._-]*[a-z0-9])?)?$")] = ""
    """The environment that turns this one's submissions into rewards, in a sandbox of its own."""
    bundle: BundleSection = BundleSection()
    limits: LimitsSection = LimitsSection()
    pool: PoolSection = PoolSection()
    deadlines: DeadlinesSection = DeadlinesSection()
    objectives: ObjectivesSection = ObjectivesSection()
    sandbox: SandboxSection = SandboxSection()
    snapshot: SnapshotSection = SnapshotSection()
    task_images: TaskImagesSection = TaskImagesSection()


def read_manifest(directory: Path) -> EnvManifest:
    """The manifest of the environment in ``directory``. Raises InvalidRequest naming the file, the key and the fix."""
    path = directory / FILE
    try:
        return EnvManifest.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InvalidRequest(f"cannot read {path}: {error.strerror}", cause=str(error)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path} is no valid TOML: {error}") from error
    except ValidationError as error:
        raise InvalidRequest(f"{path}: {'; '.join(_explain(one) for one in error.errors())}") from error


def _explain(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _fields(error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1, cutoff=0.5)
        return f"unknown key {key!r}" + (f", did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}")
    if error["type"] == "missing":
        return f"key {key!r} is missing"
    return f"{key} is {error['input']!r}: {error['msg']}"


def _fields(location: tuple[Any, ...]) -> list[str]:
    model: type[BaseModel] = EnvManifest
    for part in location:
        annotation = model.model_fields[str(part)].annotation
        assert isinstance(annotation, type)
        model = annotation
    return sorted(model.model_fields)
