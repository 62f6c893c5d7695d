"""``python3 guest.pyz (--socket PATH | --stdio) [--entry module:Class] [--python-path a:b]``"""

import os
import signal
import sys

from rock.guest.envhost import EnvProcess
from rock.guest.loop import Loop
from rock.guest.output import Log
from rock.guest.server import Server

USAGE = __doc__


def parse(argv):
    # type: (list) -> dict
    """By hand: argparse would add a tenth to the start of every sandbox."""
    options = {"socket": "", "stdio": False, "entry": "", "python_path": []}  # type: dict
    words = list(argv)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if word == "--stdio":
            options["stdio"] = True
        elif name in ("--socket", "--entry", "--python-path") and (equals or words):
            value = value if equals else words.pop(0)
            key = name[2:].replace("-", "_")
            options[key] = [part for part in value.split(":") if part] if key == "python_path" else value
        else:
            sys.exit("unknown argument %r\nusage: %s" % (word, USAGE))
    if bool(options["socket"]) == options["stdio"]:
        sys.exit("give either --socket PATH or --stdio\nusage: %s" % USAGE)
    return options


def main(argv):
    # type: (list) -> int
    options = parse(argv)
    if options["stdio"]:  # keep the protocol's two descriptors from everything else that reads or prints
        read_fd, write_fd = os.dup(0), os.dup(1)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(2, 1)
    log = Log(2)
    loop = Loop(own_signals=True)
    env = None
    if options["entry"]:
        env = EnvProcess(loop, options["entry"], options["python_path"], log, lambda error: server.env_died(error))
        env.start()  # before any connection exists that the child could inherit
    server = Server(loop, env, log, loop.stop)

    def stop():
        # type: () -> None
        server.stop(loop.stop)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: loop.call_threadsafe(stop))
    if options["stdio"]:
        server.serve_pair(read_fd, write_fd, stop)
    else:
        server.listen(options["socket"])
    loop.run()
    end_all()
    return 0


def end_all():
    # type: () -> None
    """Nothing that the guest started outlives it."""
    from rock.guest.processes import kill_started

    kill_started(os.getpid(), include_root=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
