"""The production engine: vLLM's ``AsyncLLM`` behind the :class:`~roll_core.engines.base.Engine` protocol.

Token ids go in and come out; vLLM's own text handling serves stop strings alone. Invariants: log-probs are those of the
distribution that was sampled from (``processed_logprobs``: temperature and top-p included), as vLLM reports them; each
token's version is the label that vLLM's engine core held when it sampled the token, so nothing that happens between its
process and this one can tell another; new weights are loaded while generation is paused, every KV block computed under
the old ones is dropped, and requests in flight keep their tokens and go on; nothing is served before the engine holds
the weights it was made with.

Sessions need no care: a turn finds the blocks of the turns before it by vLLM's prefix cache (whole blocks, until new
weights come). A death of vLLM's process is :class:`~roll_core.errors.EngineDead` for every request; the router replaces
the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from roll_core.engines.base import EngineStats, SamplingParams, check_fit, check_request
from roll_core.engines.vllm_devices import MAKING, visible_gpus
from roll_core.engines.vllm_stats import Meter, meter_class
from roll_core.engines.vllm_worker import OWNER
from roll_core.errors import EngineDead, RecipeError
from roll_core.models.checkpoint import save_weights
from roll_core.models.qwen import ModelConfig, parameter_shapes
from roll_core.models.tokenizer import Tokenizer
from roll_core.types import FinishReason, Generation, Weights

_log = logging.getLogger(__name__)

_EXTENSION = "roll_core.engines.vllm_worker.WeightReceiver"
_SHARED_MEMORY = Path("/dev/shm")
_REASONS: dict[str | None, FinishReason] = {"stop": "stop", "length": "length", "abort": "abort"}
_CPU_KV_CACHE_BYTES = 1 << 30
_GIB = 1 << 30
_LEAST_TEMPERATURE = 0.01
"""vLLM raises what lies below, with a warning."""
_SHUTDOWN_S = 5.0


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """What a recipe's ``engine`` section says to vLLM, beside what every engine takes."""

    tensor_parallel: int = 1
    gpu_memory_utilization: float = 0.9
    kv_cache_gib: float = 0.0
    """0: what ``gpu_memory_utilization`` leaves; on CPUs 1 GiB."""
    enforce_eager: bool = False


def import_vllm() -> Any:
    """vLLM's module. Raises RecipeError that says what to install, or what this version lacks."""
    # Its engine core is a process of its own: a fork of one that runs torch threads may hang.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    try:
        import vllm
        from vllm.v1.engine.async_llm import AsyncLLM
    except ImportError as error:
        raise RecipeError(
            f"engine.kind 'vllm' needs vLLM, which cannot be imported ({error}). Install it with "
            "`pip install 'rock-roll[vllm]'`, or use engine.kind=torch."
        ) from error
    if not hasattr(AsyncLLM, "update_weight_version"):
        raise RecipeError(
            f"vLLM {vllm.__version__} does not tell which weights sampled a token; 0.32 and later do. "
            "Install one of those: `pip install 'vllm>=0.32'`."
        )
    return vllm


class VllmEngine:
    """An :class:`~roll_core.engines.base.Engine` in processes of vLLM's own, on GPUs or on the CPU."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        *,
        tokenizer: Tokenizer | None = None,
        slots: int = 64,
        max_context: int | None = None,
        prefill_tokens: int = 2048,
        threads: int | None = None,
        device: str = "cuda",
        dtype: torch.dtype = torch.bfloat16,
        seed: int = 0,
        options: VllmOptions | None = None,
    ) -> None:
        """``slots`` is vLLM's max_num_seqs, ``prefill_tokens`` its tokens per pass (at least ``slots``). ``threads``
        counts on CPUs only. ``tokenizer`` is needed for stop strings. Raises ValueError when weights do not fit."""
        self.config = config
        self.max_context = min(max_context or config.max_context, config.max_context)
        self._shapes = parameter_shapes(config)
        check_fit(self._shapes, weights.tensors)
        self._first = weights
        self._tokenizer = tokenizer
        self._slots = slots
        self._prefill_tokens = max(prefill_tokens, slots)
        self._threads = threads
        self._device, self._dtype, self._seed = device, dtype, seed
        self._options = options or VllmOptions()
        self._llm: Any = None
        self._params: Any = None
        self._meter = Meter()
        self._folder: Path | None = None
        self._loading = asyncio.Lock()
        self._version = -1
        self._load_s = 0.0
        self._requests_made = 0
        self._ids_taken: set[str] = set()
        self._death: BaseException | None = None

    # -- life ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Minutes for large models: weights are written as a checkpoint, and vLLM reads it."""
        if self._folder is not None:
            raise RuntimeError("the engine was started before; make a new one")
        vllm = import_vllm()
        self._check_device()
        self._params = vllm.SamplingParams
        self._folder = Path(tempfile.mkdtemp(prefix="rock-vllm-", dir=_shared_directory()))
        try:
            checkpoint = self._folder / "model"
            await asyncio.to_thread(save_weights, self.config, self._first.tensors, checkpoint, self._tokenizer)
            arguments = self._arguments(checkpoint)
            self._llm = await asyncio.to_thread(self._make, arguments)
            await self._llm.update_weight_version(str(self._first.version))
            # The first pass ever takes seconds more than any other: they belong to the start.
            await self.generate("warm-up", [0], SamplingParams(max_tokens=1))
        except BaseException:
            await self.close()
            raise
        shutil.rmtree(checkpoint)
        self._version = self._first.version
        self._first = Weights(self._version, {})

    async def close(self) -> None:
        """Stop vLLM's processes. Requests still pending raise EngineDead. May be called twice."""
        self._death = self._death or EngineDead("the engine was closed")
        llm, self._llm = self._llm, None
        if llm is not None:
            await asyncio.to_thread(llm.shutdown, _SHUTDOWN_S)
        if self._folder is not None:
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    def _make(self, arguments: Any) -> Any:
        from vllm.v1.engine.async_llm import AsyncLLM

        # Its processes talk through sockets; they would stay in the temporary folder when one is killed.
        own = {OWNER: f"{os.getpid()}:{self._folder}", "VLLM_RPC_BASE_PATH": str(self._folder)}
        with MAKING, _environment({**own, **self._device_environment()}):
            return AsyncLLM.from_engine_args(arguments, stat_loggers=[meter_class(self._meter)])

    def _device_environment(self) -> dict[str, str]:
        if self._device != "cpu":
            return visible_gpus(self._device, self._options.tensor_parallel, os.environ)
        # vLLM otherwise takes all cores and pins its threads to them, beside a learner that needs some.
        return {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(self._threads or torch.get_num_threads())}

    def _check_device(self) -> None:
        from vllm.platforms import current_platform

        if (self._device == "cpu") != current_platform.is_cpu():
            runs = "the CPU" if current_platform.is_cpu() else "an accelerator, or finds none"
            raise RecipeError(
                f"engine.device is {self._device!r}, but the vLLM that is installed runs on {runs}. "
                "Production installs `vllm` and sets engine.device=cuda; the build for CPUs serves tests."
            )

    def _arguments(self, checkpoint: Path) -> Any:
        from vllm.engine.arg_utils import AsyncEngineArgs

        options = self._options
        cache_bytes = int(options.kv_cache_gib * _GIB) or (_CPU_KV_CACHE_BYTES if self._device == "cpu" else None)
        return AsyncEngineArgs(
            model=str(checkpoint),
            skip_tokenizer_init=self._tokenizer is None,
            dtype=str(self._dtype).removeprefix("torch."),
            seed=self._seed,
            max_model_len=self.max_context,
            max_num_seqs=self._slots,
            max_num_batched_tokens=self._prefill_tokens,
            enable_chunked_prefill=True,
            enable_prefix_caching=True,
            tensor_parallel_size=options.tensor_parallel,
            gpu_memory_utilization=options.gpu_memory_utilization,
            kv_cache_memory_bytes=cache_bytes,
            enforce_eager=options.enforce_eager or self._device == "cpu",
            logprobs_mode="processed_logprobs",
            generation_config="vllm",  # what a checkpoint likes to sample with is not what the recipe says
            worker_extension_cls=_EXTENSION,
        )

    # -- generation ------------------------------------------------------------------------------------------------

    async def generate(
        self, request_id: str, prompt_ids: Sequence[int], params: SamplingParams, *, session: str = ""
    ) -> Generation:
        self._check_alive()
        theirs = self._translate(prompt_ids, params)
        if request_id in self._ids_taken:
            raise ValueError(f"request {request_id!r} is already running")
        self._ids_taken.add(request_id)
        self._meter.enter()
        try:
            last: Any = None
            prompt = {"type": "token", "prompt_token_ids": list(prompt_ids)}
            async for output in self._llm.generate(prompt, theirs, request_id):
                last = output
            return _generation(last.outputs[0])
        except Exception as error:
            if self._dead_by(error):
                raise self._dead() from error
            raise
        finally:
            self._meter.leave()
            self._ids_taken.discard(request_id)

    async def abort(self, request_id: str) -> None:
        if self._llm is not None and self._death is None and request_id in self._ids_taken:
            await self._llm.abort(request_id)

    def release(self, session: str) -> None:
        """Nothing to forget: blocks that nobody asks for again are the first that vLLM reuses."""

    def _translate(self, prompt_ids: Sequence[int], params: SamplingParams) -> Any:
        from vllm.sampling_params import RequestOutputKind

        room = check_request(
            prompt_ids,
            params,
            max_context=self.max_context,
            vocab=self.config.vocab,
            has_tokenizer=self._tokenizer is not None,
        )
        if 0 < params.temperature < _LEAST_TEMPERATURE:
            raise ValueError(
                f"vLLM samples no colder than temperature {_LEAST_TEMPERATURE}; {params.temperature} would be another "
                "distribution than the one asked for. Take 0 (greedy), or more."
            )
        greedy = params.temperature == 0
        return self._params(
            max_tokens=min(params.max_tokens, room),
            temperature=params.temperature,
            top_p=1.0 if greedy else params.top_p,
            seed=None if greedy else self._stream(params),
            stop=list(params.stop),
            stop_token_ids=list(params.stop_token_ids),
            include_stop_str_in_output=True,
            ignore_eos=True,  # an answer ends where the recipe says, and nowhere else
            detokenize=bool(params.stop),
            skip_special_tokens=False,
            spaces_between_special_tokens=False,
            logprobs=0,  # of the sampled token alone
            flat_logprobs=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _stream(self, params: SamplingParams) -> int:
        """A request that comes from elsewhere with tokens goes on under a stream of its own: vLLM's cannot be wound
        forward, and the same one from its beginning would draw the same noise again."""
        seed = params.seed
        if seed is None:
            self._requests_made += 1
            seed = (self._seed << 24) + self._requests_made
        return (seed + 0x9E3779B1 * params.sampled) % 2**31

    # -- weights ---------------------------------------------------------------------------------------------------

    async def load_weights(self, weights: Weights) -> None:
        """See the protocol. Raises ValueError, and goes on under the old weights, when the new ones do not fit."""
        self._check_alive()
        check_fit(self._shapes, weights.tensors)
        async with self._loading:
            self._check_alive()
            assert self._folder is not None
            path = self._folder / f"v{weights.version}.safetensors"
            try:
                tensors = {n: weights.tensors[n].detach().to("cpu", self._dtype).contiguous() for n in self._shapes}
                await asyncio.to_thread(save_file, tensors, path)
                await self._swap(path, weights.version)
            except Exception as error:
                # Half of the weights may be new: whatever this engine says from now on is nobody's policy.
                self._death = self._death or error
                raise self._dead() from error
            finally:
                path.unlink(missing_ok=True)

    async def _swap(self, path: Path, version: int) -> None:
        begin = time.perf_counter()
        await self._llm.pause_generation(mode="keep", clear_cache=False)
        await self._llm.collective_rpc("receive_weights", args=(str(path),))
        # Running requests are put back to be computed anew, and what the prefix cache held is forgotten.
        if not await self._llm.reset_prefix_cache(reset_running_requests=True):
            raise EngineDead(f"vLLM did not give up the KV cache of version {self._version}")
        await self._llm.update_weight_version(str(version))
        await self._llm.resume_generation()
        self._version = version
        self._load_s += time.perf_counter() - begin

    # -- state -----------------------------------------------------------------------------------------------------

    def stats(self) -> EngineStats:
        """Where vLLM's KV cache is full before its sequences are, ``slots`` is what it has room for."""
        meter = self._meter
        starved = meter.waiting > 0 and 0 < meter.running < self._slots
        running = min(meter.resident, meter.running if starved else self._slots)
        return EngineStats(
            version=self._version,
            generated_tokens=meter.generated_tokens,
            prefilled_tokens=meter.prefilled_tokens,
            cached_tokens=meter.cached_tokens,
            running=running,
            waiting=meter.resident - running,
            slots=meter.running if starved else self._slots,
            busy_s=meter.busy_s(),
            load_s=self._load_s,
        )

    def _check_alive(self) -> None:
        if self._llm is None and self._death is None:
            raise EngineDead("the engine was not started; await start() first")
        if self._death is not None:
            raise self._dead()

    def _dead_by(self, error: Exception) -> bool:
        if self._death is None and self._llm is not None and self._llm.errored:
            self._death = error
        return self._death is not None

    def _dead(self) -> EngineDead:
        return EngineDead(f"vLLM's engine ended: {self._death!r}")


def _generation(output: Any) -> Generation:
    ids = tuple(int(i) for i in output.token_ids)
    logprobs = tuple(output.logprobs.logprobs) if ids else ()
    versions = tuple(int(s.version) for s in output.weight_versions or () for _ in range(s.start, s.end))
    if not len(ids) == len(logprobs) == len(versions):
        raise EngineDead(f"vLLM reports {len(ids)} tokens, {len(logprobs)} log-probs and {len(versions)} versions")
    return Generation(ids, logprobs, versions, _REASONS[output.finish_reason])


def _shared_directory() -> Path | None:
    """Memory that processes share; elsewhere the temporary directory does the same, by the disk."""
    return _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else None


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Any:
    """vLLM's processes inherit what stands here while they are made."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
