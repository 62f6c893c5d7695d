"""Blocking methods made of asynchronous ones, each in one line, with the original's parameters, types and text.

A facade holds an object (``_inner``) and the loop it lives on. In its class ``health = blocking(Rock.health)`` is the
method that calls `Rock.health` on that loop and waits: type checkers and editors see ``() -> Health``, and ``help()``
and `inspect.signature` the original.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from rock.sdk._loop_thread import _LoopThread

I = TypeVar("I")  # noqa: E741 - the inner object
I_co = TypeVar("I_co", covariant=True)
W = TypeVar("W")
F = TypeVar("F")
T = TypeVar("T")
P = ParamSpec("P")


class Facade(Generic[I_co]):
    """An object of the asynchronous client for code without an event loop."""

    def __init__(self, loop: _LoopThread, inner: I_co) -> None:
        self._loop = loop
        self._inner = inner

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        raise NotImplementedError


def blocking(method: Callable[Concatenate[I, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[Facade[I], P], T]:
    """The method that waits for ``method`` of the inner object."""

    @functools.wraps(method)
    def call(self: Facade[I], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._loop.run(method(self._inner, *args, **kwargs))

    return call


def giving(
    method: Callable[Concatenate[I, P], W], facade: Callable[[_LoopThread, W], F]
) -> Callable[Concatenate[Facade[I], P], F]:
    """The method that calls ``method``, which needs no waiting, and hands its result out behind a ``facade``."""

    @functools.wraps(method)
    def call(self: Facade[I], /, *args: P.args, **kwargs: P.kwargs) -> F:
        return facade(self._loop, method(self._inner, *args, **kwargs))

    return call


def blocking_giving(
    method: Callable[Concatenate[I, P], Coroutine[Any, Any, W]], facade: Callable[[_LoopThread, W], F]
) -> Callable[Concatenate[Facade[I], P], F]:
    """The method that waits for ``method`` and hands its result out behind a ``facade``."""

    @functools.wraps(method)
    def call(self: Facade[I], /, *args: P.args, **kwargs: P.kwargs) -> F:
        return facade(self._loop, self._loop.run(method(self._inner, *args, **kwargs)))

    return call


def iterating(
    method: Callable[Concatenate[I, P], AsyncGenerator[T, None]],
) -> Callable[Concatenate[Facade[I], P], Iterator[T]]:
    """The method that gives what ``method`` generates, one by one; left early, the generator is closed on its loop."""

    @functools.wraps(method)
    def call(self: Facade[I], /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        return _each(self._loop, method(self._inner, *args, **kwargs))

    return call


def _each(loop: _LoopThread, items: AsyncGenerator[T, None]) -> Iterator[T]:
    async def take() -> tuple[T] | None:
        try:
            return (await anext(items),)
        except StopAsyncIteration:
            return None

    async def end() -> None:
        await items.aclose()

    try:
        while (found := loop.run(take())) is not None:
            yield found[0]
    finally:
        loop.run(end())
