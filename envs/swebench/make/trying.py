"""Which tests notice which mutant: suites run in sandboxes of the platform, several at a time.

A sandbox holds one copy of the package; a mutant is written over its file, the suite runs, the file is put back.
"""

from __future__ import annotations

import asyncio
import io
import random
import tarfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from envs.swebench.judge.grading import statuses
from envs.swebench.judge.rows import RowError
from envs.swebench.make.instance import LOG_PARSER, TEST_COMMAND, Effect, effect, failure_words
from envs.swebench.make.mutate import Mutant, mutants
from envs.swebench.make.source import python_path, source_files
from rock.sdk import Limits, Rock, Sandbox, SandboxSpec

_HOME = "/var/tmp"
_LOG_BYTES = 8 << 20
_CLEAN_RUNS = 2
_LIMITS = Limits(memory_bytes=1 << 30, pids=256, tmpfs_bytes=256 << 20)


@dataclass
class Suite:
    """A package's tests and its mutants, those of many functions before many of one."""

    tree: Path
    site: Path
    seed: int
    suite_s: float = 120.0
    tried: int = 0
    _clean: dict[str, str] = field(default_factory=dict)

    def candidates(self) -> list[Mutant]:
        """In an order that the seed decides: one mutant of each function, then the second of each, and so on."""
        by_scope: dict[tuple[str, str], list[Mutant]] = {}
        for path in source_files(self.tree):
            for mutant in mutants(path, (self.tree / path).read_text(encoding="utf-8")):
                by_scope.setdefault((path, mutant.scope), []).append(mutant)
        chance = random.Random(self.seed)
        rounds: list[list[Mutant]] = []
        for scope in sorted(by_scope):
            chance.shuffle(by_scope[scope])
            for i, mutant in enumerate(by_scope[scope]):
                if i == len(rounds):
                    rounds.append([])
                rounds[i].append(mutant)
        for one in rounds:
            chance.shuffle(one)
        return [mutant for one in rounds for mutant in one]

    async def effects(
        self, rock: Rock, wanted: int, jobs: int, say: Callable[[str], None]
    ) -> AsyncIterator[tuple[Mutant, Effect]]:
        """``wanted`` mutants that are good for an instance, in the order of candidates. Raises RowError if the suite
        itself does not pass, or there are too few."""
        async with _Box(rock, self) as box:
            self._clean = await self._always_passing(box)
        say(f"{len(self._clean)} tests pass, in each of {_CLEAN_RUNS} runs")
        candidates = iter(self.candidates())
        kept = 0
        while kept < wanted:
            batch = [m for _, m in zip(range(min(2 * (wanted - kept), 4 * jobs)), candidates, strict=False)]
            if not batch:
                raise RowError(f"only {kept} of {wanted} bugs are noticed by 1 to 20 tests; ask for fewer.")
            for mutant, found in zip(batch, await self._try_all(rock, batch, jobs), strict=True):
                self.tried += 1
                if found is not None and kept < wanted:
                    kept += 1
                    yield mutant, found
            say(f"{kept} of {wanted} bugs found, {self.tried} tried")

    async def _always_passing(self, box: _Box) -> dict[str, str]:
        runs = [await box.run() for _ in range(_CLEAN_RUNS)]
        first = runs[0][0]
        clean = {name: s for name, s in first.items() if all(run[0].get(name) == s for run in runs)}
        if not any(status == "PASSED" for status in clean.values()):
            raise RowError(f"no test of {self.tree.name} passes as it is: {runs[0][1][-1500:]}")
        return clean

    async def _try_all(self, rock: Rock, batch: list[Mutant], jobs: int) -> list[Effect | None]:
        found: dict[int, Effect | None] = {}
        waiting = iter(enumerate(batch))

        async def work() -> None:
            async with _Box(rock, self) as box:
                for i, mutant in waiting:
                    found[i] = await self._try(box, mutant)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(jobs, len(batch))):
                group.create_task(work())
        return [found[i] for i in range(len(batch))]

    async def _try(self, box: _Box, mutant: Mutant) -> Effect | None:
        source = (self.tree / mutant.path).read_text(encoding="utf-8")
        await box.write(mutant.path, mutant.applied(source))
        mutated, log = await box.run()
        await box.write(mutant.path, source)
        return effect(self._clean, mutated, failure_words(log))


class _Box:
    """A sandbox with the package and what its tests import."""

    def __init__(self, rock: Rock, suite: Suite) -> None:
        spec = SandboxSpec(
            image="", read_only=False, limits=_LIMITS, workdir=_HOME, environ={"HOME": _HOME, "PIP_NO_INDEX": "1"}
        )
        self._suite = suite
        self._box: Sandbox = rock.sandbox(spec=spec, wait_s=300, labels={"by": "rock env make-swe"})

    async def __aenter__(self) -> _Box:
        await self._box.open()
        await self._box.write_file(f"{_HOME}/in.tar", await asyncio.to_thread(self._archive), timeout_s=300)
        await self._box.exec(["tar", "-xf", f"{_HOME}/in.tar", "-C", _HOME], timeout_s=300)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._box.close()

    async def write(self, path: str, text: str) -> None:
        await self._box.write_file(f"{_HOME}/testbed/{path}", text)

    async def run(self) -> tuple[dict[str, str], str]:
        """(status by test, the log); a run that takes too long has no statuses."""
        path = f"/var/tmp/site:{python_path(f'{_HOME}/testbed', self._suite.tree)}"
        environ = {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0", "COLUMNS": "200"}
        command = f"cd {_HOME}/testbed && timeout -k 1 {self._suite.suite_s:g} {TEST_COMMAND} 2>&1"
        done = await self._box.exec(
            ["bash", "-c", command],
            environ=environ,
            timeout_s=self._suite.suite_s + 30,
            max_output_bytes=_LOG_BYTES,
        )
        found = statuses(done.stdout, LOG_PARSER) if done.exit_code in (0, 1) else {}
        return found, done.stdout

    def _archive(self) -> bytes:
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as tar:
            for source, name in ((self._suite.tree, "testbed"), (self._suite.site, "site")):
                tar.add(source, name, filter=_plain_entry)
        return data.getvalue()


def _plain_entry(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    entry.mode |= 0o644
    return entry
