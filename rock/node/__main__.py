"""``python -m rock.node --config FILE``: one node of a platform, in a process of its own. ``-`` reads standard input.

The settings are the JSON of :class:`rock.node.hosting.HostSettings`. ``rock up --nodes`` starts nodes this way; on a
machine of its own a node is started by Ray (``rock up --ray``), or by hand.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

from pydantic import ValidationError

from rock.domain.errors import RockError
from rock.node.hosting import HostSettings, host


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m rock.node", description="One node of a platform.")
    parser.add_argument("--config", required=True, metavar="FILE", help="its settings as JSON; - for standard input")
    source = parser.parse_args().config
    level = logging.DEBUG if os.environ.get("ROCK_DEBUG") else logging.INFO
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for noisy in ("docker", "urllib3", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        settings = HostSettings.model_validate_json(sys.stdin.read() if source == "-" else Path(source).read_text())
        asyncio.run(_run(settings))
    except (RockError, OSError, ValidationError) as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    return 0


async def _run(settings: HostSettings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await host(settings, stop=stop)


if __name__ == "__main__":
    sys.exit(main())
