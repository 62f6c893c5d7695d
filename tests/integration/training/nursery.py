"""Starts `rock train` again and again without importing torch each time: a process that has, and forks itself.

Reads one JSON object per line, ``{"argv": …, "environ": …, "output": …, "plain": …}``; answers each with the child's
pid and, when it has ended, its exit status (negative: the signal). ``plain``: sample with the plain engine.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback


def main() -> None:
    import torch

    for module in ("rock.cli.main", "roll_core.training.run", "roll_core.rollout.reuse"):
        importlib.import_module(module)

    torch.set_num_threads(1)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os._exit(live(order))
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def live(order: dict) -> int:
    output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.environ.update(order["environ"])
    if order["plain"]:
        from plain_engine import PlainEngine

        from roll_core.training import assembly

        assembly.make_engine = lambda recipe, config, weights, tokenizer: PlainEngine(config, weights)
    from rock.cli.main import app

    try:
        app(order["argv"], prog_name="rock")
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:  # noqa: BLE001 - the process ends here
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main()
