"""The control plane over HTTP: one keep-alive client, time-outs on everything, errors of the one vocabulary.

Invariants: whatever goes wrong leaves here as a :class:`RockError`; a request that may have reached the platform is
sent again only if sending it twice does no harm; nothing waits without a limit.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import cache
from typing import Any, TypeVar, cast
from urllib.parse import quote, urlsplit

import httpx
import orjson
from pydantic import BaseModel, TypeAdapter, ValidationError

from rock.domain.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    PlatformUnavailable,
    RockError,
    Unauthorized,
    from_problem,
)

T = TypeVar("T")

CONNECT_TIMEOUT_S = 5.0
FIRST_RETRY_S = 0.1
LONGEST_RETRY_S = 2.0
# For how long a platform that cannot be reached is tried again. One that is known to have been there is being started
# again by its guardian, within seconds on a machine that is not busy; a typing error in the address should not take
# half a minute.
UNKNOWN_RETRY_S = 3.0
KNOWN_RETRY_S = 30.0
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})

# The request has certainly not reached the platform: any request may be sent again.
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


class Transport:
    """Requests to one platform.

    Args:
        url: address of the platform, ``http://host:port``.
        key: API key, sent as a bearer token; empty for none.
        timeout_s: how long one request may take, unless the call says otherwise.
        retry_s: for how long a platform that cannot be reached is tried again before giving up; None decides by
            whether it is known.
        known: a platform has been there; set as soon as it answers.
    """

    def __init__(self, url: str, key: str, *, timeout_s: float, retry_s: float | None, known: bool = False) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise InvalidRequest(
                f"{url!r} is no address of a platform.", hint="Give it as http://host:port, for example in ROCK_URL."
            )
        self.url = url
        self._timeout_s = timeout_s
        self._retry_s = retry_s
        self._known = known
        self._client = httpx.AsyncClient(
            base_url=f"{url}/v1/",
            headers={"Authorization": f"Bearer {key}"} if key else {},
            # No limit on connections: a lease waits on its own for a sandbox and must not hold up heartbeats.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=30),
            # A proxy of the company's network cannot reach a platform on this machine.
            trust_env=parts.hostname not in _LOOPBACK,
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def get(self, kind: type[T], path: str, /, **params: Any) -> T:
        """GET ``path``; parameters that are None are left out."""
        return cast(T, await self.request("GET", path, kind=kind, params=params, idempotent=True))

    async def request(
        self,
        method: str,
        path: str,
        *,
        kind: Any = None,
        body: BaseModel | list[Any] | None = None,
        params: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
        idempotent: bool = False,
        retry_s: float | None = None,
        once: str = "",
        wait_if_known: bool = False,
    ) -> Any:
        """Send a request and return its answer as ``kind`` (None: the answer is not read).

        ``once``: a word that makes sending it twice harmless. A refusal for a quota is tried again after the time that
        the platform names, if that is within ``retry_s``: such a request was not carried out.

        ``wait_if_known``: ``retry_s`` holds only for a platform that is known.

        Raises: the platform's own error; PlatformUnavailable when nobody, or something else, answers;
        DeadlineExceeded when the platform took longer than ``timeout_s``.
        """
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        patience_s = retry_s if retry_s is not None and (self._known or not wait_if_known) else self.patience_s
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + patience_s
        attempt = 0
        idempotent = idempotent or bool(once)
        headers = {"Content-Type": "application/json"} if body is not None else {}
        if once:
            headers["Idempotency-Key"] = once
        while True:
            try:
                response = await self._client.request(
                    method,
                    path,
                    content=_encode(body),
                    params={k: v for k, v in (params or {}).items() if v is not None and v != ""},
                    headers=headers,
                    timeout=httpx.Timeout(limit_s, connect=min(CONNECT_TIMEOUT_S, limit_s)),
                )
                self._known = True
                wait_s = _wait_s(response)
                if wait_s is None or loop.time() + wait_s >= give_up_at:
                    return self._decode(response, kind)
                await asyncio.sleep(wait_s)
            except httpx.TransportError as error:
                again = isinstance(error, _NEVER_SENT) or (idempotent and not isinstance(error, httpx.TimeoutException))
                pause_s = random.uniform(0, min(LONGEST_RETRY_S, FIRST_RETRY_S * 2**attempt))
                if not again or loop.time() + pause_s >= give_up_at:
                    raise self._unreachable(error, method, path, limit_s) from error
                attempt += 1
                await asyncio.sleep(pause_s)
            except (httpx.InvalidURL, httpx.HTTPError) as error:
                raise self._unreachable(error, method, path, limit_s) from error

    @property
    def patience_s(self) -> float:
        """For how long to try again, now."""
        if self._retry_s is not None:
            return self._retry_s
        return KNOWN_RETRY_S if self._known else UNKNOWN_RETRY_S

    @asynccontextmanager
    async def lines(
        self, path: str, *, params: Mapping[str, Any], headers: Mapping[str, str], silence_s: float
    ) -> AsyncIterator[AsyncIterator[str]]:
        """The lines of an answer that goes on. Once, without trying again: the caller knows where to go on.

        Raises: the platform's own error; PlatformUnavailable when it hangs up, cannot be reached, or says nothing for
        ``silence_s``.
        """
        timeout = httpx.Timeout(silence_s, connect=CONNECT_TIMEOUT_S)
        given = {k: v for k, v in params.items() if v is not None and v not in ("", [])}
        try:
            async with self._client.stream("GET", path, params=given, headers=headers, timeout=timeout) as response:
                if not response.is_success:
                    await response.aread()
                    self._decode(response, None)
                yield response.aiter_lines()
        except httpx.HTTPError as error:
            raise PlatformUnavailable(
                f"The platform at {self.url} hung up.", hint="Look at `rock logs`.", cause=str(error)
            ) from error

    def _unreachable(self, error: Exception, method: str, path: str, limit_s: float) -> RockError:
        if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
            return DeadlineExceeded(
                f"{method} {path} was not answered by {self.url} within {limit_s:g} s.",
                hint="The platform is overloaded or stuck: look at `rock logs`.",
            )
        return PlatformUnavailable(
            f"No platform answers at {self.url}.",
            hint="Start one with `rock up -d`, or set ROCK_URL to where it runs.",
        )

    def _decode(self, response: httpx.Response, kind: Any) -> Any:
        if response.is_success:
            if kind is None:
                return None
            try:
                return _adapter(kind).validate_json(response.content)
            except ValidationError as error:
                raise self._strange(response, str(error.errors(include_url=False)[:3])) from error
        try:
            problem = orjson.loads(response.content)
        except orjson.JSONDecodeError:
            problem = None
        if isinstance(problem, dict) and str(problem.get("type", "")).startswith("urn:rock:"):
            raise from_problem(problem)
        if response.status_code in {401, 403}:
            raise Unauthorized(
                f"{self.url} refused the request (HTTP {response.status_code}).",
                hint="Set ROCK_KEY to a key of this platform.",
            )
        raise self._strange(response, response.text[:200])

    def _strange(self, response: httpx.Response, cause: str) -> RockError:
        return PlatformUnavailable(
            f"What answers at {self.url} does not speak like this version of the platform "
            f"({response.request.method} {response.request.url.path}: HTTP {response.status_code}).",
            hint="Check the address (ROCK_URL), and that client and platform have the same version (`rock version`).",
            cause=cause,
        )


def _wait_s(response: httpx.Response) -> float | None:
    """When to ask again after a refusal for a quota; None if it was none."""
    after = response.headers.get("retry-after", "")
    return random.uniform(0.5, 1.0) * int(after) if response.status_code == 429 and after.isdigit() else None


def _encode(body: BaseModel | list[Any] | None) -> bytes | None:
    if body is None:
        return None
    if isinstance(body, BaseModel):
        return body.model_dump_json().encode()
    return orjson.dumps([item.model_dump(mode="json") for item in body])


def part(value: str) -> str:
    """``value`` as one part of a path, whatever a user typed."""
    if value in {"", ".", ".."}:
        raise NotFound(f"There is nothing named {value!r}.", hint="Give an id or a name.")
    return quote(value, safe="")
