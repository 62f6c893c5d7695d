"""`rock env prefetch`: the images of tasks, made before anybody waits for them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from rock.cli._verdicts import chosen_tasks
from rock.domain.errors import InvalidRequest, RockError


@dataclass
class Prefetched:
    made: int = 0
    here: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    """Why, by task."""


def prefetch_images(name: str, asked: str, split: str, jobs: int, on_line: Callable[[str], None]) -> Prefetched:
    """Blocking, minutes. Raises NotFound, ImageNotFound (not built), InvalidRequest (its tasks have no own images)."""
    from rock.runtimes.bundles import EnvCatalog
    from rock.runtimes.making import TaskImageMaker
    from rock.sdk.home import rock_home

    catalog = EnvCatalog(rock_home())
    images = {}
    for task in dict.fromkeys(chosen_tasks(list(dict.fromkeys(catalog.tasks(name, split))), asked)):
        if (spec := catalog.task_spec(name, task)) is not None:
            images[task] = spec.image
    if not images:
        raise InvalidRequest(
            f"the tasks of {name!r} are all played in its own image",
            hint=f"`rock env build {name}` has made it: there is nothing to prefetch.",
        )
    maker, found = TaskImageMaker(catalog), Prefetched()

    def one(task: str) -> None:
        try:
            if maker.make(images[task], on_line):
                found.made += 1
            else:
                found.here += 1
        except RockError as error:
            found.failed[task] = str(error)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, images))
    return found
