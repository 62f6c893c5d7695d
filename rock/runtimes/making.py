"""Makes the images that tasks are played in, when they are first needed: the task's image, fetched if it must be, with
the environment put on it by the environment's own Dockerfile. Blocking, seconds to many minutes.

Invariants: an image is made once at a time, whoever asks; at most ``PULLS`` are fetched at once, however many are
waited for; what cannot be made is the task's fault (ImageBuildFailed), not that of whoever asked for it.
"""

from __future__ import annotations

import collections
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rock.domain.errors import ImageBuildFailed, ImageNotFound
from rock.runtimes.building import dockerfile_of
from rock.runtimes.bundles import Bundle, EnvCatalog
from rock.runtimes.images import build_image, docker_client, has_image
from rock.runtimes.pulling import pull
from rock.runtimes.task_images import TaskImage

log = logging.getLogger(__name__)
OnLine = Callable[[str], None]

PULLS = 2
"""More at once share the same line, and the first of them would come later."""
_pulls = threading.BoundedSemaphore(PULLS)


class TaskImageMaker:
    def __init__(self, catalog: EnvCatalog) -> None:
        self._catalog = catalog
        self._locks: dict[str, threading.Lock] = collections.defaultdict(threading.Lock)
        self._guard = threading.Lock()

    def knows(self, image: str) -> bool:
        """Whether it is a task's image of a bundle that is here."""
        return self._catalog.task_of(image) is not None

    def make(self, image: str, on_line: OnLine | None = None) -> bool:
        """Make it unless it is here; whether it was made. Progress goes to the log, and to ``on_line``.

        Raises ImageNotFound (no bundle says what it is), ImageBuildFailed (it cannot be fetched, or does not suit the
        environment), RuntimeUnavailable.
        """
        found = self._catalog.task_of(image)
        if found is None:
            raise ImageNotFound(
                f"there is no image {image}, and no bundle says what it is",
                hint="Its environment was built anew, or its data changed: take a new lease.",
            )
        bundle, task = found

        def say(line: str) -> None:
            log.info("task=%s %s", task.task, line)
            if on_line is not None:
                on_line(line)

        with self._alone(image):
            with docker_client(60.0) as api:
                if has_image(api, image):
                    return False
            began = time.monotonic()
            self._make(bundle, task, image, say)
            say(f"made {image} in {time.monotonic() - began:.1f} s")
        return True

    def _make(self, bundle: Bundle, task: TaskImage, image: str, say: OnLine) -> None:
        environment = self._catalog.get(bundle.name)
        base = self._here(task, say)
        parts = {f"bundle/{part.name}": part for part in bundle.directory.iterdir() if part.name in _PARTS}
        parts |= {f"bundle/data/{part.name}": part for part in (task.data.iterdir() if task.data else ())}
        try:
            build_image(
                image,
                environment.directory,
                dockerfile_text=dockerfile_of(environment),
                extra=parts,
                build_args={"BASE": base},
                on_line=say,
            )
        except ImageBuildFailed as error:
            raise ImageBuildFailed(
                f"task {task.task!r} of {bundle.name!r} has the image {base}, and {bundle.name!r} cannot be put on it: "
                f"{error.message}",
                hint="Its output is below: the Dockerfile of the environment must suit every task's image.",
                cause=error.cause,
            ) from error

    def _here(self, task: TaskImage, say: OnLine) -> str:
        """The image that the task stands on, on this machine now."""
        with docker_client(60.0) as api:
            if local := next((name for name in task.stands_on if has_image(api, name)), ""):
                return local
        wanted = task.stands_on[0]
        with self._alone(wanted), _pulls:
            with docker_client(60.0) as api:
                if has_image(api, wanted):  # for another task's, or the judge's, meanwhile
                    return wanted
            say(f"fetching {wanted} …")
            try:
                pull(wanted, say)
            except ImageNotFound as error:
                others = f" (nor is there {', '.join(task.stands_on[1:])})" if task.stands_on[1:] else ""
                raise ImageBuildFailed(
                    f"the image of task {task.task!r} is missing: {error.message}{others}",
                    hint=error.hint,
                    cause=error.cause,
                ) from error
        return wanted

    @contextmanager
    def _alone(self, image: str) -> Iterator[None]:
        with self._guard:
            lock = self._locks[image]
        with lock:
            yield


_PARTS = ("src", "site", "data")
