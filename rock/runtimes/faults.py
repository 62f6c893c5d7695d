"""What can go wrong on the fake runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from rock.wire.models import SandboxSpec


@dataclass
class Faults:
    """What goes wrong. Change it at any time; it is read when the thing happens. Defaults: nothing fails."""

    unavailable: str = ""
    """Why the runtime cannot be used: ``check``, ``ensure_image`` and ``start`` say so."""
    missing_images: set[str] = field(default_factory=set)
    start_error: str = ""
    """Every ``start`` raises RuntimeUnavailable with this text."""
    fail_next_starts: int = 0
    """That many of the next starts raise, then it is over."""
    start_delay_s: float = 0.0
    """``start`` takes this long."""
    listen_delay_s: float = 0.0
    """The guest's socket appears this long after ``start`` returned."""
    never_listens: bool = False
    """The process exists, its guest never answers."""
    dies_at_start: bool = False
    """The process ends at once, with ``exit_code``."""
    die_after_steps: int | None = None
    oom_after_steps: int | None = None
    freeze_after_steps: int | None = None
    pause_after_steps: int | None = None
    child_oom_after_steps: int | None = None
    """The kernel kills a child for its memory; the step goes on."""
    env_dies_after_steps: int | None = None
    """Only the environment's process dies; the guest lives on, and starts it anew."""
    env_oom_after_steps: int | None = None
    """The same, by the kernel, for its memory."""
    env_raises_after_steps: int | None = None
    step_delay_s: float = 0.0
    reset_delay_s: float = 0.0
    exit_code: int = 1
    stop_delay_s: float = 0.0
    stop_error: str = ""
    inspect_error: str = ""
    list_error: str = ""
    snapshot_delay_s: float = 0.0
    snapshot_error: str = ""
    """Every ``snapshot`` raises RuntimeUnavailable with this text, after the delay."""
    disk_used: float = 0.0
    written_bytes: int = 0
    """What every sandbox with a writable root has on the disk."""
    deaf: bool = False
    """``watch`` tells nothing: only the reconcile loop can find out."""
    applies_to: Callable[[SandboxSpec], bool] | None = None
    """Which sandboxes the faults concern; None: all."""
