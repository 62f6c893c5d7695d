"""What is checked before a lease: how long it may be held, and how many its key may hold. Pure, and cheap.

Invariants: a key never holds more leases than it may, counting those that are being granted; nobody is refused for
leases that were refused or have ended; a lease that could not outlast what its environment declares is never begun.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from rock.control.keys import Caller
from rock.domain.errors import InvalidRequest, QuotaExceeded
from rock.wire.models import EnvView, LeaseRequest


def check_time(request: LeaseRequest, env: EnvView | None) -> None:
    """Raises InvalidRequest when the lease would end before an episode of the environment can."""
    if env is None or not request.needs_s:
        return
    least_s = env.episode_s + env.scoring_s + env.cleanup_s
    if request.needs_s < least_s:
        raise InvalidRequest(
            f"needs_s={request.needs_s:g}: an episode of {env.name!r} may take {env.episode_s:g} s, its scoring "
            f"{env.scoring_s:g} s and its clean-up {env.cleanup_s:g} s, {least_s:g} s together",
            hint=f"Ask for at least {least_s:g} s, or for 0 (no limit); env.toml's [deadlines] says what it takes.",
        )


class Quota:
    """Leases by key: ``held`` are told by whoever knows the leases, those being granted are counted here."""

    def __init__(self) -> None:
        self._granting: Counter[str] = Counter()

    @contextmanager
    def granting(self, caller: Caller, held: int) -> Iterator[None]:
        """Around a grant, until the lease counts among those held. Raises QuotaExceeded."""
        granting = self._granting[caller.key_id]
        if caller.max_leases and held + granting >= caller.max_leases:
            raise QuotaExceeded(
                f"key {caller.name!r} holds {held} leases and waits for {granting}; it may hold {caller.max_leases}",
                hint="Release one, wait for one to end, or create a key with a higher max_leases.",
            )
        self._granting[caller.key_id] += 1
        try:
            yield
        finally:
            self._granting[caller.key_id] -= 1
            if not self._granting[caller.key_id]:
                del self._granting[caller.key_id]
