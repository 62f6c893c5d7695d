"""``rock version``."""

from __future__ import annotations

import contextlib
import platform

from rock.cli._output import JsonOption, print_json, say


def version(as_json: JsonOption = False) -> None:
    """Print the versions of rock and of Python, and of the platform if one answers.

    Examples:
      rock version
      rock version --json
    """
    import rock
    from rock.cli._client import ask
    from rock.sdk import RockError

    found = {"rock": rock.__version__, "python": platform.python_version(), "platform": None}
    with contextlib.suppress(RockError):  # none runs, which is an answer too
        found["platform"] = ask(lambda client: client.health()).version
    if as_json:
        print_json(found)
    else:
        say(f"rock {found['rock']} on Python {found['python']}; platform {found['platform'] or 'not running'}")
