"""Images of tasks that must be fetched: from a registry that this test plays, with the real Docker daemon asking."""

from __future__ import annotations

import json
import secrets
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rock.domain.errors import ImageBuildFailed
from rock.runtimes.building import build_environment
from rock.runtimes.bundles import EnvCatalog
from rock.runtimes.making import PULLS, TaskImageMaker

pytestmark = [pytest.mark.docker, pytest.mark.timeout(120)]
COUNTER = Path(__file__).parents[2] / "fixtures" / "envs" / "counter"
TASKS = [f"to-{number}" for number in range(1, 6)]


class Registry:
    """Has nothing; keeps whoever asks for an image waiting until ``PULLS`` do, and counts how many do at once."""

    def __init__(self) -> None:
        self.asked: set[str] = set()
        self.most = 0
        self._waiting = 0
        self._lock = threading.Lock()
        self._full = threading.Event()

    def ask(self, path: str) -> None:
        with self._lock:
            self.asked.add(path)
            self._waiting += 1
            self.most = max(self.most, self._waiting)
            if self._waiting >= PULLS:
                self._full.set()
        self._full.wait(5.0)
        with self._lock:
            self._waiting -= 1


@pytest.fixture
def registry() -> Iterator[tuple[Registry, int]]:
    played = Registry()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if "/manifests/" in self.path:
                played.ask(self.path)
            found = self.path == "/v2/"
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield played, server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


def test_two_at_most_are_fetched_at_once_and_what_is_not_there_is_named_with_what_to_do(
    tmp_path: Path, registry: tuple[Registry, int]
) -> None:
    played, port = registry
    folder = Path(shutil.copytree(COUNTER, tmp_path / "envs" / "counter"))
    catalog = EnvCatalog(tmp_path / "home", search=[folder.parent])
    bundle = build_environment(catalog, "counter", image=False)
    names = {task: f"127.0.0.1:{port}/{secrets.token_hex(4)}:1" for task in TASKS}
    (bundle.directory / "images.json").write_text(json.dumps(names))
    maker, lines = TaskImageMaker(catalog), list[str]()

    def make(task: str) -> str:
        spec = catalog.task_spec("counter", task)
        assert spec is not None
        with pytest.raises(ImageBuildFailed) as caught:
            maker.make(spec.image, lines.append)
        return str(caught.value)

    with ThreadPoolExecutor(len(TASKS)) as threads:
        errors = dict(zip(TASKS, threads.map(make, TASKS), strict=True))
    for task in TASKS:
        assert all(words in errors[task] for words in (f"task {task!r}", names[task], "docker load"))
    assert sum("fetching" in line for line in lines) == len(TASKS)
    assert len(played.asked) == len(TASKS)
    assert played.most == PULLS
