"""``python3 guest.pyz (--socket PATH | --stdio) [--entry module:Class] [--python-path a:b] [--orphan-after S]
[--egress PATH]``"""

from __future__ import annotations

import os
import signal
import sys

from rock.guest.envhost import EnvProcess
from rock.guest.loop import Loop
from rock.guest.orphan import DeadMansSwitch
from rock.guest.output import Log
from rock.guest.processes import kill_started
from rock.guest.server import Server

TYPE_CHECKING = False
if TYPE_CHECKING:  # a sandbox starts sooner without the typing module
    from typing import Any

USAGE = __doc__


def parse(argv: list[Any]) -> dict[str, Any]:
    """By hand: argparse would add a tenth to the start of every sandbox."""
    options: dict[Any, Any] = {"socket": "", "stdio": False, "entry": "", "python_path": []}
    options.update(orphan_after=0.0, egress="")
    words = list(argv)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if word == "--stdio":
            options["stdio"] = True
        elif name in ("--socket", "--entry", "--python-path", "--orphan-after", "--egress") and (equals or words):
            value = value if equals else words.pop(0)
            options[name[2:].replace("-", "_")] = _parsed(name, value)
        else:
            sys.exit("unknown argument %r\nusage: %s" % (word, USAGE))
    if bool(options["socket"]) == options["stdio"]:
        sys.exit("give either --socket PATH or --stdio\nusage: %s" % USAGE)
    return options


def _parsed(name: str, value: str) -> Any:
    if name == "--python-path":
        return [part for part in value.split(":") if part]
    if name != "--orphan-after":
        return value
    try:
        return float(value)
    except ValueError:
        sys.exit("--orphan-after is %r, expected seconds\nusage: %s" % (value, USAGE))


def main(argv: list[Any]) -> int:
    options = parse(argv)
    if options["stdio"]:  # keep the protocol's two descriptors from everything else that reads or prints
        read_fd, write_fd = os.dup(0), os.dup(1)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(2, 1)
    log = Log(2)
    loop = Loop(own_signals=True)
    server = Server(loop, log, loop.stop)
    if options["egress"]:
        from rock.guest.egress import open_door  # most sandboxes have none

        open_door(loop, options["egress"])  # before anything is started that is to know of it
    if options["entry"]:
        server.env = EnvProcess(loop, options["entry"], options["python_path"], log, server.env_died)
        server.env.start()  # before any connection exists that the child could inherit

    def stop() -> None:
        server.stop(loop.stop)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: loop.call_threadsafe(stop))
    if options["stdio"]:
        server.serve_pair(read_fd, write_fd, stop)
    else:
        if options["orphan_after"] > 0:

            def orphaned() -> None:
                log.say("nobody has been connected for %g s; ending" % options["orphan_after"])
                stop()

            server.switch = DeadMansSwitch(loop, options["orphan_after"], orphaned)
        server.listen(options["socket"])
    loop.run()
    kill_started(os.getpid(), include_root=False)  # nothing that the guest started outlives it
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
