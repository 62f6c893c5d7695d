"""The embedded engine: continuous batching in a worker thread, on CPU or one GPU.

Invariants: only the worker touches weights, cache and requests; commands reach it through one queue and take effect
between passes, in order, so a token is sampled wholly under one version. A request leaves with one Generation or one
error, whatever happens. A session's cache is believed only as far as its ids equal the prompt's; after new weights it
is not believed at all, so a running request recomputes its whole sequence before its next token.

What goes into a pass: :mod:`roll_core.engines.schedule`. Requests are admitted in order of arrival.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from roll_core.engines.base import EngineStats, SamplingParams, check_request
from roll_core.engines.decoder import Decoder
from roll_core.engines.sampling import sample, uniforms
from roll_core.engines.schedule import Request, schedule
from roll_core.engines.settling import Settled, settle, settle_all
from roll_core.engines.slots import SlotTable
from roll_core.engines.stopping import StopStrings
from roll_core.errors import EngineDead
from roll_core.models.qwen import ModelConfig
from roll_core.models.tokenizer import Tokenizer
from roll_core.types import FinishReason, Generation, Weights

_log = logging.getLogger(__name__)

T = TypeVar("T")

_CLOSE_S = 30.0  # longer than any forward pass takes


class TorchEngine:
    """An :class:`~roll_core.engines.base.Engine` inside this process."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        *,
        tokenizer: Tokenizer | None = None,
        slots: int = 64,
        max_context: int | None = None,
        prefill_tokens: int = 512,
        threads: int | None = None,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        """``slots``: sequences whose cache is held at once, running or idle; memory is slots · max_context tokens.

        ``tokenizer`` is only needed for stop strings. ``threads`` sets torch's CPU threads for the whole process.
        ``seed`` is the source of seeds for requests that bring none. Raises ValueError when weights do not fit.
        """
        self.config = config
        self.max_context = min(max_context or config.max_context, config.max_context)
        self._tokenizer = tokenizer
        self._prefill_tokens = prefill_tokens
        self._threads = threads
        self._seed = seed
        self._decoder = Decoder(config, slots=slots, max_context=self.max_context, device=device, dtype=dtype)
        self._decoder.load(weights.tensors)
        self._version = weights.version
        self._slots = SlotTable(slots)
        self._stop_strings: dict[tuple[str, ...], StopStrings] = {}

        self._ids_taken: set[str] = set()  # touched on the callers' side only
        self._requests_made = 0
        self._wake = threading.Condition()
        self._commands: deque[Callable[[], None]] = deque()
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []  # in order of admission
        self._finished: list[Settled] = []  # of this pass, not delivered yet
        self._thread: threading.Thread | None = None
        self._closing = False
        self._death: BaseException | None = None
        self._generated = self._prefilled = self._cached = 0
        self._busy_s = self._load_s = 0.0

    # -- the asynchronous side -------------------------------------------------------------------------------------

    async def start(self) -> None:
        if self._thread is not None:
            raise RuntimeError("the engine was started before; make a new one")
        self._thread = threading.Thread(target=self._work, name="torch-engine", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Stop the worker. Requests still pending raise EngineDead. May be called twice."""
        self._closing = True
        self._post(lambda: None)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, _CLOSE_S)
            if self._thread.is_alive():  # a daemon: it does not hold up the exit
                _log.error("the engine's worker did not end within %g s; it hangs in a forward pass", _CLOSE_S)

    async def generate(
        self, request_id: str, prompt_ids: Sequence[int], params: SamplingParams, *, session: str = ""
    ) -> Generation:
        request = self._make_request(request_id, prompt_ids, params, session)
        self._check_alive()
        self._ids_taken.add(request_id)
        try:
            self._post(lambda: self._waiting.append(request))
            self._check_alive(request.future)
            return await request.future
        except asyncio.CancelledError:
            self._post(lambda: self._abort(request_id))
            raise
        finally:
            self._ids_taken.discard(request_id)

    async def abort(self, request_id: str) -> None:
        self._post(lambda: self._abort(request_id))

    def release(self, session: str) -> None:
        self._post(lambda: self._slots.release(session))

    async def load_weights(self, weights: Weights) -> None:
        """See the protocol. Raises ValueError, and goes on under the old weights, when the new ones do not fit."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._check_alive()
        self._post(lambda: self._load(weights, loop, done))
        self._check_alive(done)
        await done

    def stats(self) -> EngineStats:
        return EngineStats(
            version=self._version,
            generated_tokens=self._generated,
            prefilled_tokens=self._prefilled,
            cached_tokens=self._cached,
            running=len(self._running),
            waiting=len(self._waiting),
            slots=self._slots.count,
            busy_s=self._busy_s,
            load_s=self._load_s,
        )

    def _make_request(
        self, request_id: str, prompt_ids: Sequence[int], params: SamplingParams, session: str
    ) -> Request:
        room = check_request(
            prompt_ids,
            params,
            max_context=self.max_context,
            vocab=self.config.vocab,
            has_tokenizer=self._tokenizer is not None,
        )
        if request_id in self._ids_taken:
            raise ValueError(f"request {request_id!r} is already running")
        seed = params.seed
        if seed is None:
            self._requests_made += 1
            seed = (self._seed << 32) + self._requests_made
        loop = asyncio.get_running_loop()
        return Request(
            id=request_id,
            params=params,
            session=session,
            ids=list(prompt_ids),
            prompt_size=len(prompt_ids),
            limit=min(params.max_tokens, room),
            seed=seed,
            stop_ids=frozenset(params.stop_token_ids),
            stop_strings=self._stops_for(params.stop),
            loop=loop,
            future=loop.create_future(),
        )

    def _stops_for(self, stops: tuple[str, ...]) -> StopStrings | None:
        if not stops or self._tokenizer is None:
            return None
        if stops not in self._stop_strings:
            self._stop_strings[stops] = StopStrings(self._tokenizer, stops)
        return self._stop_strings[stops]

    def _post(self, command: Callable[[], None]) -> None:
        with self._wake:
            self._commands.append(command)
            self._wake.notify()

    def _check_alive(self, future: asyncio.Future[T] | None = None) -> None:
        """Before posting and again after it: a command posted once the worker has ended would never be run."""
        if self._thread is None:
            raise EngineDead("the engine was not started; await start() first")
        if self._death is not None:
            if future is not None:
                future.cancel()
            raise self._dead()

    def _dead(self) -> EngineDead:
        return EngineDead(f"the engine's worker ended: {self._death!r}")

    # -- the worker ------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            if self._threads is not None:
                torch.set_num_threads(self._threads)
            with torch.inference_mode():
                while not self._closing:
                    self._obey()
                    self._admit()
                    if self._running:
                        begin = time.perf_counter()
                        self._pass()
                        self._deliver()
                        self._busy_s += time.perf_counter() - begin
                    self._deliver()
            self._end(EngineDead("the engine was closed"))
        except BaseException as error:  # noqa: BLE001 - the worker's edge: whatever it is, those who wait must hear of it
            _log.exception("the engine's worker died")
            self._end(error)

    def _end(self, cause: BaseException) -> None:
        self._death = cause
        # Commands posted before the death was visible may hold requests: run those too, then refuse everyone.
        with self._wake:
            commands, self._commands = self._commands, deque()
        for command in commands:
            command()
        self._deliver()
        for request in (*self._running, *self._waiting):
            error = self._dead()
            error.__cause__ = cause
            error.partial = request.generation("abort")
            settle(request.loop, request.future, error)
        self._running.clear()
        self._waiting.clear()

    def _obey(self) -> None:
        """Run the commands that have come in; wait for one when there is nothing to compute."""
        with self._wake:
            while not (self._commands or self._running or self._waiting or self._closing):
                self._wake.wait()
            commands, self._commands = self._commands, deque()
        for command in commands:
            command()

    def _admit(self) -> None:
        while self._waiting:
            request = self._waiting[0]
            place = self._slots.acquire(request.session, request.ids)
            if place is None:
                return
            self._waiting.popleft()
            request.slot, request.computed = place
            self._cached += request.computed
            self._running.append(request)

    def _pass(self) -> None:
        """One forward pass over what is runnable, one sampled token for each sequence that is complete."""
        batch, pieces, shared = schedule(self._running, self._prefill_tokens)
        self._cached += shared
        for request, piece in zip(batch, pieces, strict=True):
            request.computed += len(piece.token_ids)
            if piece.start < request.prompt_size or len(piece.token_ids) > 1:
                self._prefilled += len(piece.token_ids)
        ready = [i for i, request in enumerate(batch) if request.computed == len(request.ids)]
        logits_RV = self._decoder.forward(pieces, ready)
        if not ready:
            return
        rows = [batch[i] for i in ready]
        token_R, logprob_R = sample(
            logits_RV,
            [r.params.temperature for r in rows],
            [r.params.top_p for r in rows],
            uniforms([r.seed for r in rows], [r.params.sampled + len(r.logprobs) for r in rows]),
        )
        if not bool(torch.isfinite(logprob_R).all()):
            raise FloatingPointError(f"the policy of version {self._version} gives logits that are not finite")
        self._generated += len(rows)
        for request, token, logprob in zip(rows, token_R.tolist(), logprob_R.tolist(), strict=True):
            request.ids.append(token)
            request.logprobs.append(logprob)
            request.versions.append(self._version)
            if token in request.stop_ids or self._completes_stop(request):
                self._finish(request, "stop")
            elif len(request.logprobs) >= request.limit:
                self._finish(request, "length")

    def _completes_stop(self, request: Request) -> bool:
        return request.stop_strings is not None and request.stop_strings.reached(request.ids[request.prompt_size :])

    def _finish(self, request: Request, reason: FinishReason) -> None:
        if request.slot >= 0:
            self._running.remove(request)
            self._slots.finish(request.slot, request.ids[: request.computed])
        self._finished.append((request.loop, request.future, request.generation(reason)))

    def _deliver(self) -> None:
        finished, self._finished = self._finished, []
        settle_all(finished)

    def _abort(self, request_id: str) -> None:
        for request in self._waiting:
            if request.id == request_id:
                self._waiting.remove(request)
                self._finish(request, "abort")
                return
        for request in self._running:
            if request.id == request_id:
                self._finish(request, "abort")
                return

    def _load(self, weights: Weights, loop: asyncio.AbstractEventLoop, done: asyncio.Future[None]) -> None:
        if self._death is not None:
            settle(loop, done, self._dead())
            return
        begin = time.perf_counter()
        try:
            self._decoder.load(weights.tensors)
        except ValueError as error:
            settle(loop, done, error)
            return
        finally:
            self._load_s += time.perf_counter() - begin
        self._version = weights.version
        self._slots.invalidate()
        for request in self._running:
            request.computed = 0
        settle(loop, done, None)
