"""API keys: who may do what, and how much of it at once. Kept in memory, so that a request costs no query.

Invariants: a secret exists in clear only in the answer to its creation; a revoked key is refused from the moment the
revocation is stored, also where it is in the middle of many requests (those that have begun end as they would); while
there are keys, somebody can still manage them: the last way in as admin is never taken away by a request.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime

from rock.domain.errors import Conflict, NotFound, QuotaExceeded
from rock.store.keys import KeyStore, StoredKey
from rock.wire.models import KeyCreate, KeyView, Scope

log = logging.getLogger(__name__)

SCOPES: tuple[Scope, ...] = ("read", "run", "admin")
"""Each allows what those before it allow."""

# ``rk_<id>_<random>``: people, and scanners for leaked secrets, see what it is, and the id says whose hash to compare.
_PREFIX = "rk"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. ``key_id`` is empty for the key the platform was started with, and where no key is asked for."""

    key_id: str = ""
    name: str = ""
    scope: Scope = "admin"
    max_leases: int = 0
    max_requests: int = 0

    def may(self, needed: Scope) -> bool:
        return SCOPES.index(self.scope) >= SCOPES.index(needed)


OWNER = Caller()


def secret_sha256(secret: bytes) -> str:
    return hashlib.sha256(secret).hexdigest()


@dataclass(frozen=True, slots=True)
class _Living:
    caller: Caller
    secret_sha256: str


# What is compared with where the id is nobody's, so that an unknown id takes as long as a wrong secret.
_NOBODY = _Living(OWNER, secret_sha256(b""))


class KeyRing:
    def __init__(self, store: KeyStore) -> None:
        self._store = store
        self._views: dict[str, KeyView] = {}
        self._living: dict[str, _Living] = {}
        self._under_way: Counter[str] = Counter()
        self._used: dict[str, datetime] = {}

    async def open(self) -> None:
        for key in await self._store.keys():
            self._learn(key)

    def _learn(self, key: StoredKey) -> None:
        view = key.view
        self._views[view.id] = view
        if view.revoked_at is None:
            caller = Caller(view.id, view.name, view.scope, view.max_leases, view.max_requests)
            self._living[view.id] = _Living(caller, key.secret_sha256)

    def __len__(self) -> int:
        """How many are good."""
        return len(self._living)

    # --- on every request

    def identify(self, secret: bytes) -> Caller | None:
        """Whose secret it is; None if it is nobody's. Compared in constant time."""
        _, _, rest = secret.partition(b"_")
        key_id = rest.partition(b"_")[0].decode("ascii", "replace")
        living = self._living.get(f"key-{key_id}", _NOBODY)
        right = hmac.compare_digest(secret_sha256(secret), living.secret_sha256)
        return living.caller if right and living is not _NOBODY else None

    def enter(self, caller: Caller) -> None:
        """A request begins. Raises QuotaExceeded; whoever entered must leave."""
        if not caller.key_id:
            return
        if caller.max_requests and self._under_way[caller.key_id] >= caller.max_requests:
            raise QuotaExceeded(
                f"key {caller.name!r} has {caller.max_requests} requests under way, as many as it may",
                hint="Wait for one to end, or create a key with a higher max_requests.",
            )
        self._under_way[caller.key_id] += 1
        self._used[caller.key_id] = datetime.now(UTC)

    def leave(self, caller: Caller) -> None:
        if caller.key_id:
            self._under_way[caller.key_id] -= 1

    # --- managing

    async def create(self, request: KeyCreate, *, owner_has_key: bool) -> KeyView:
        """``owner_has_key``: the platform was started with a key, which is an admin's. Raises Conflict, StorageError.

        The first key closes the door for everybody without one, so it must be one that can open it again.
        """
        if not owner_has_key and request.scope != "admin" and not self._admins():
            raise Conflict(
                f"the first key must be an admin's, not of scope {request.scope!r}: from then on every request needs "
                "a key, and nobody could create or revoke any",
                hint="Create one with scope admin first, or start the platform with ROCK_KEY set.",
            )
        ident = secrets.token_hex(5)
        secret = f"{_PREFIX}_{ident}_{secrets.token_urlsafe(32)}"
        view = KeyView(
            id=f"key-{ident}",
            name=request.name,
            scope=request.scope,
            max_leases=request.max_leases,
            max_requests=request.max_requests,
            created_at=datetime.now(UTC),
        )
        stored = StoredKey(view, secret_sha256(secret.encode()))
        await self._store.add(stored)
        self._learn(stored)
        return view.model_copy(update={"secret": secret})

    async def revoke(self, key_id: str, *, owner_has_key: bool, reachable: bool) -> None:
        """Idempotent. ``reachable``: others than this machine reach the API, so that it must not be left without keys.

        Raises NotFound, Conflict, StorageError.
        """
        view = self._views.get(key_id)
        if view is None:
            raise NotFound(f"no key {key_id!r}", hint="`rock key list` shows them.")
        if view.revoked_at is not None:
            return
        last = len(self) == 1
        if not owner_has_key and self._admins() == {key_id} and (reachable or not last):
            raise Conflict(
                f"{key_id} is the only key of scope admin: without it nobody could manage the keys",
                hint="Create another with scope admin first"
                + ("." if reachable else ", or revoke the others: without any key only this machine is served."),
            )
        at = datetime.now(UTC)
        await self._store.revoke(key_id, at)
        self._views[key_id] = view.model_copy(update={"revoked_at": at})
        self._living.pop(key_id, None)

    def _admins(self) -> set[str]:
        return {key_id for key_id, living in self._living.items() if living.caller.scope == "admin"}

    def views(self) -> list[KeyView]:
        """All of them, the oldest first, without their secrets."""
        return [
            view.model_copy(update={"last_used_at": self._used.get(view.id, view.last_used_at)})
            for view in self._views.values()
        ]

    async def flush(self) -> None:
        """Write down when keys were used. Raises StorageError; then it is kept for the next time."""
        used, self._used = self._used, {}
        if not used:
            return
        try:
            await self._store.used(used)
        except BaseException:
            self._used = used | self._used
            raise
        for key_id, at in used.items():
            self._views[key_id] = self._views[key_id].model_copy(update={"last_used_at": at})
