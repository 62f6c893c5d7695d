"""Who is let in, and to which session.

Two kinds. :class:`EpisodeKeys`: every episode has a key of its own, which names its session; without one nobody is let
in. :class:`OpenDoor`: whoever knows the one key, if there is one; a header, or ``user``, names the session, and without
either a request belongs to the chat that its messages extend.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from roll_core.serving.session import Session
from roll_core.serving.wire import ApiError

SESSION_HEADER = "x-session-id"
_KEPT_SESSIONS = 1024
_KEPT_CHATS = 256
"""Of a session with no end, so that a server that runs for weeks does not grow."""


class Stage(Protocol):
    """The environment of an episode, for whoever plays it."""

    def view(self) -> dict[str, Any]: ...

    async def step(self, action: Any) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Seat:
    session: Session
    stage: Stage | None = None


class Door(Protocol):
    def check(self, headers: Mapping[str, str]) -> None:
        """Raises ApiError when the key is not right."""
        ...

    def seat(self, headers: Mapping[str, str], user: str) -> Seat:
        """Raises ApiError when the key is not right."""
        ...


def _refusal(said: str) -> ApiError:
    return ApiError(401, said, code="invalid_api_key", kind="authentication_error")


def _bearer(headers: Mapping[str, str]) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


class EpisodeKeys:
    def __init__(self) -> None:
        self._seats: dict[bytes, Seat] = {}

    def admit(self, seat: Seat) -> str:
        """A key for ``seat``, until :meth:`dismiss`."""
        key = f"sk-episode-{secrets.token_urlsafe(24)}"
        self._seats[_digest(key)] = seat
        return key

    def dismiss(self, key: str) -> None:
        self._seats.pop(_digest(key), None)

    def check(self, headers: Mapping[str, str]) -> None:
        self.seat(headers, "")

    def seat(self, headers: Mapping[str, str], user: str) -> Seat:
        # Found by its digest: how long that takes says nothing about the key.
        found = self._seats.get(_digest(_bearer(headers)))
        if found is None:
            raise _refusal("No episode has this key. An episode's program finds its own in OPENAI_API_KEY.")
        return found


class OpenDoor:
    def __init__(self, make: Callable[[str], Session], key: str = "") -> None:
        """``make``: a session by its name, of which there may be any number. ``key``: empty lets everyone in."""
        self._make = make
        self._key = key
        self._seats: OrderedDict[str, Seat] = OrderedDict()

    def check(self, headers: Mapping[str, str]) -> None:
        if self._key and not hmac.compare_digest(_bearer(headers).encode(), self._key.encode()):
            raise _refusal("The key is not right: send `Authorization: Bearer KEY`.")

    def seat(self, headers: Mapping[str, str], user: str) -> Seat:
        self.check(headers)
        name = headers.get(SESSION_HEADER, "") or user
        seat = self._seats.get(name)
        if seat is None:
            seat = self._seats[name] = Seat(self._make(name))
        self._seats.move_to_end(name)
        if len(self._seats) > _KEPT_SESSIONS:
            self._seats.popitem(last=False)
        del seat.session.chats.roots[:-_KEPT_CHATS]
        return seat


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
