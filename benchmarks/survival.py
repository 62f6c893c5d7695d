"""``python -m benchmarks.survival [--quick] [--runtime NAME]``: the control plane is killed under running episodes.

Starts a platform of its own, lets clients step environments that count their steps, kills the platform's process with
SIGKILL again and again, and prints one JSON object as its last line:

- ``control_restart_s``: from the kill until the API answers again (p50, and the worst);
- ``adopt_s``: from the kill to a new claim served and every old lease known again (p50, and the worst);
- ``voided``: leases lost, and clients that saw an error; ``duplicated``: steps that acted twice or never;
- ``leaked``: what has no owner afterwards, with the platform running, and after ``rock down``;
- ``guardian_rss_mib``: what the process takes that starts the platform again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks._measuring import home, machine, percentile, platform
from rock.cli._owners import inventory, nobody
from rock.cli.doctor import asker
from rock.cluster.settings import instance_of
from rock.domain.errors import RockError
from rock.runtimes.building import build_environment
from rock.runtimes.bundles import EnvCatalog
from rock.sdk import Rock
from rock.sdk.home import read_server

COUNTER = Path(__file__).parents[1] / "tests" / "fixtures" / "envs"
POOL = 2
_PATIENCE_S = 120.0


class Client:
    """Steps without a pause; each answer says how many steps have acted."""

    def __init__(self, rock: Rock) -> None:
        self._rock = rock
        self.steps = 0
        self.duplicated = 0
        self.error: RockError | None = None
        self.ready = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        try:
            async with self._rock.env("counter", task="to-100000000", wait_s=_PATIENCE_S) as env:
                await env.reset()
                while not stop.is_set():
                    observation, *_ = await env.step("inc")
                    self.steps += 1
                    self.duplicated += int(observation.split()[0]) != self.steps
                    self.ready.set()
                    await asyncio.sleep(0.005)
        except RockError as error:
            self.error = error
            self.ready.set()


async def _one_kill(directory: Path, rock: Rock) -> tuple[float, float]:
    server = read_server(directory)
    assert server is not None
    leases = await rock.leases()
    os.kill(server.pid, signal.SIGKILL)
    began = time.monotonic()
    await rock.health()
    restart_s = time.monotonic() - began
    async with rock.env("counter", task="to-1", wait_s=_PATIENCE_S):
        known = {lease.id for lease in await rock.leases()}
        assert known >= {lease.id for lease in leases}, "a lease was forgotten"
        return restart_s, time.monotonic() - began


async def _measure(directory: Path, url: str, clients: int, kills: int) -> dict[str, Any]:
    async with Rock(url, retry_s=_PATIENCE_S) as rock:
        stop = asyncio.Event()
        stepping = [Client(rock) for _ in range(clients)]
        tasks = [asyncio.create_task(client.run(stop)) for client in stepping]
        await asyncio.gather(*(client.ready.wait() for client in stepping))
        times = [await _one_kill(directory, rock) for _ in range(kills)]
        server = read_server(directory)
        assert server is not None
        rss_mib = psutil.Process(server.guardian_pid).memory_info().rss / (1 << 20)
        stop.set()
        await asyncio.gather(*tasks)
        lost = await rock.events(kind="lease.lost", limit=1000)
        leaked = [item for item in await inventory(directory, asker(directory)) if _ours(directory, item)]
    restarts, adoptions = [t[0] for t in times], [t[1] for t in times]
    return {
        "control_restart_s": round(percentile(restarts, 0.5), 2),
        "control_restart_worst_s": round(max(restarts), 2),
        "adopt_s": round(percentile(adoptions, 0.5), 2),
        "adopt_worst_s": round(max(adoptions), 2),
        "voided": len(lost) + sum(client.error is not None for client in stepping),
        "duplicated": sum(client.duplicated for client in stepping),
        "leaked": len(leaked),
        "guardian_rss_mib": round(rss_mib, 1),
        "steps": sum(client.steps for client in stepping),
    }


def _ours(directory: Path, item: Any) -> bool:
    return not item.owner and item.instance == instance_of(directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two kills, two clients")
    parser.add_argument("--runtime", default="docker", choices=("docker", "bubblewrap"))
    arguments = parser.parse_args()
    clients, kills = (2, 2) if arguments.quick else (6, 10)
    os.environ["ROCK_ENV_PATH"] = str(COUNTER)
    with home() as directory:
        build_environment(EnvCatalog(directory), "counter", image=arguments.runtime == "docker")
        capacity = clients + POOL + 4
        with platform(directory, runtime=arguments.runtime, capacity=capacity, pools={"counter": POOL}) as url:
            found = asyncio.run(_measure(directory, url, clients, kills))
        left = asyncio.run(inventory(directory, nobody))
        found["leaked"] += sum(_ours(directory, item) for item in left)
    print(json.dumps({"benchmark": "survival", "kills": kills, "clients": clients, **found, **machine()}))


if __name__ == "__main__":
    main()
