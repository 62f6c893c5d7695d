"""Which runtime to use here: the one asked for, else Docker, else bubblewrap."""

from __future__ import annotations

from pathlib import Path

from rock.domain.errors import InvalidRequest, RuntimeUnavailable
from rock.runtimes.base import Availability, Runtime
from rock.runtimes.bubblewrap import BubblewrapRuntime
from rock.runtimes.bundles import EnvCatalog
from rock.runtimes.docker import DockerRuntime
from rock.runtimes.fake import FakeRuntime
from rock.runtimes.making import TaskImageMaker

RUNTIMES = ("docker", "bubblewrap", "fake")
_AUTOMATIC = ("docker", "bubblewrap")


def make_runtime(name: str, instance: str, home: Path, node: str = "") -> Runtime:
    """The runtime of that name, usable or not. Raises InvalidRequest.

    ``node``: what it starts carries the node's name, and it sees nothing else; empty: all nodes of the instance.
    """
    if name == "docker":
        return DockerRuntime(instance, node=node, home=home, maker=TaskImageMaker(EnvCatalog(home)))
    if name == "bubblewrap":
        return BubblewrapRuntime(instance, home, node=node)
    if name == "fake":
        return FakeRuntime(instance)
    raise InvalidRequest(f"unknown runtime {name!r}", hint=f"Use auto, {', '.join(RUNTIMES)}.")


async def choose_runtime(preference: str | None, instance: str, home: Path, node: str = "") -> tuple[Runtime, str]:
    """The runtime, and in one line why it is this one.

    ``preference``: a name, or None or "auto" for the first that works. Raises RuntimeUnavailable with the remedies.
    """
    names = _AUTOMATIC if preference in (None, "", "auto") else (str(preference),)
    refused: list[tuple[str, Availability]] = []
    for name in names:
        runtime = make_runtime(name, instance, home, node)
        found = await runtime.check()
        if found.ok:
            why = "; ".join(f"not {other}: {reason.detail}" for other, reason in refused)
            return runtime, found.detail + (f" ({why})" if why else "")
        await runtime.close()
        refused.append((name, found))
    raise RuntimeUnavailable(
        "no runtime can be used here: " + "; ".join(f"{name}: {found.detail}" for name, found in refused),
        hint="    Or: ".join(found.remedy for _, found in refused if found.remedy),
    )
