"""``rock exec``: one program in a sandbox."""

from __future__ import annotations

import sys
from typing import Annotated

import typer


def exec_(
    sandbox: Annotated[str, typer.Argument(help="Id of the sandbox.")],
    argv: Annotated[list[str], typer.Argument(help="The program and its arguments.", metavar="COMMAND...")],
    cwd: Annotated[str, typer.Option(help="Directory to run it in.")] = "",
    timeout_s: Annotated[float, typer.Option("--timeout", min=0.1, max=3600, help="Seconds it may take.")] = 60.0,
) -> None:
    """Run a program in a sandbox, with its output here and its exit code as this command's.

    The program is started as it is, without a shell; give [bold]sh -c "…"[/] for one. Options of rock go before the
    sandbox, everything after it belongs to the program. A program that takes too long is killed (exit code 124).

    Examples:
      rock exec sb-0123456789 ls -l /tmp
      rock exec --timeout 5 sb-0123456789 sh -c 'echo $HOME; id'
    """
    from rock.cli._client import ask
    from rock.sdk import ExecRequest

    request = ExecRequest(argv=tuple(argv), cwd=cwd, timeout_s=timeout_s)
    result = ask(lambda rock: rock.exec(sandbox, request))
    sys.stdout.write(result.stdout)
    sys.stdout.flush()
    sys.stderr.write(result.stderr)
    if result.truncated:
        sys.stderr.write(f"(output cut at {request.max_output_bytes} bytes)\n")
    if result.timed_out:
        sys.stderr.write(f"Error: {argv[0]} was killed after {timeout_s:g} s. Give it more with --timeout.\n")
        raise typer.Exit(124)
    raise typer.Exit(result.exit_code if 0 <= result.exit_code < 256 else 128 + abs(result.exit_code) % 128)
