"""The program inside every sandbox. Standard library only, Python 3.8+, so that it runs in any image.

It is packed into one file (``guest.pyz``) and put beside its socket in the one directory that a sandbox shares with
its node. It hosts an environment in a process of its own, runs commands, moves files, and answers probes.

Wire: one JSON object per line, UTF-8, both ways, over a unix stream socket (or over standard input and output where
a socket cannot cross). Any number of connections, any number of requests in flight on each; ``id`` pairs them.

    → {"id": 7, "op": "env.step", "epoch": 1, "seq": 3, "action": "go to fridge 1"}
    ← {"id": 7, "ok": true, "value": {"observation": …, "reward": 0.0, "terminated": false, …}}
    ← {"id": 7, "ok": false, "error": {"type": "urn:rock:environment-error", "detail": …, "hint": …}}

Bytes may go behind a line instead of into it, as base64: a request with ``"data_bytes": N`` is followed by so many (for
every field ``data_b64`` below), and to one with ``"raw": true`` so is the answer, in place of its ``data_b64``.

Error types are the codes of ``rock.domain.errors``. Operations (fields → value):

    hello         → {"protocol": 1, "pid", "python", "env": "none|loading|ready|dead", "epoch"}
    ping          → {"t": monotonic seconds, "env": as above, "busy_s": seconds in its present call, or 0}
                    once there is something to say also "steps": {"count", "sum_s", "max_s", "us": {microseconds:
                    steps}} since the guest began, "env_deaths": how often the env process died, "env_cause": how
                    it last did
    bind          epoch → {}    node only: requests with a lower epoch are refused as stale-epoch from now on
    env.reset     seq, task, seed, options → {"observation", "info"}
    env.step      seq, action → {"observation", "reward", "terminated", "truncated", "info"}
    env.call      method, args → {"value"}
    env.hooks     → {"snapshots": whether the environment has ``checkpoint`` and ``restore``}
    env.checkpoint → {"state"}  between two steps, before the sandbox's files are kept
    env.restore   seq, task, seed, options, state → {}   instead of a reset, over kept files; ``seq`` is the number of
                  the step that the state stands after, whatever came before
    env.close     → {}
    shell.open    [cwd, environ] → {"shell": id}
    shell.run     shell, command, timeout_s, max_output_bytes
                  → {"exit_code", "output", "truncated", "timed_out", "duration_s"}
    shell.interrupt shell → {}   ends the command under way as its time-out would
    shell.close   shell → {}
    exec          argv, [cwd, environ, stdin_b64], timeout_s, max_output_bytes
                  → {"exit_code", "stdout", "stderr", "truncated", "timed_out", "duration_s"}
    file.read     path, [offset, length] → {"data_b64", "eof"}
    file.write    path, data_b64, [append, mode] → {"size_bytes"}
    file.list     path → {"entries": [{"name", "kind", "size_bytes", "mtime_s"}]}
    job.start     argv, [cwd, environ, pty: [rows, columns], merge, keep: "last"|"all", limit_bytes] → {"job", "pid"}
    job.read      job, offset, [size, wait_s] → {"offset", "data_b64", "ended", "exit_code"} when there is something to
                  say, or after wait_s; "offset" above what was asked for: what lay between is forgotten; with "ended"
                  also "stderr", unless that was merged into the output
    job.write     job, data_b64, [eof] → {}   once the program has taken most of what it was given
    job.signal    job, signal → {}   to its process group
    job.resize    job, pty → {}
    job.list      → {"jobs": [{"job", "pid", "argv", "exit_code", "end"}]}
    job.close     job → {}   kills what still runs of it
    tar.pack      path, [gzip] → as job.start: its output is an archive of the file, or of what the directory holds
    tar.unpack    path → as job.start: takes an archive, zipped or not, as its input; says how many entries it had
    file.watch    path, [every_s] → as job.start: a line {"kind": "ready|created|modified|deleted", "path"} a change
    tunnel        port → {}, and from then on the connection is one to that port on the sandbox's own loopback
    pause, resume → {"processes"}, {}   stops everything but the guest; meanwhile most operations are a ``conflict``
    usage         → {"processes", "cpu_s", "rss_bytes", "disks": {path: {"total_bytes", "used_bytes"}}, "t", "paused"}
    log           [lines] → {"lines": […]}   the last lines of the guest's and the env process's own output
    shutdown      → {}

``seq`` counts the env requests of an episode from 0 (the reset). A repeated ``seq`` with the same request returns the
cached result and does not act again; an older one or a gap is refused as ``conflict``. A reset with ``seq`` 0 begins a
new episode at any time. A request that is refused does not use up its number. After ``environment-error`` or
``sandbox-lost`` the episode is void: every step gives the same error until the next reset. ``env.call``, ``env.hooks``
and ``env.checkpoint`` have no number; after ``sandbox-lost`` they too are refused until then. An env process that dies
is started anew at once (``loading``), so that the reset finds it loaded; one that dies again and again, or before it
was usable, stays ``dead`` until a reset. One that a signal has stopped is ended, as having died, at the second ping
that finds it so.

With ``--egress PATH`` a port of the sandbox's loopback is piped to the HTTP proxy that listens at PATH, and what the
guest starts finds it in ``http_proxy`` and its like.

With ``--orphan-after SECONDS`` a guest to whom nobody from outside has been connected for so long ends itself.

Output is text, decoded as UTF-8 with replacement; of more than ``max_output_bytes`` the first and the last half are
kept. A command killed for its time has exit code 124 and ``timed_out``; nothing that it started runs on. ``shell.run``
also says ``shell_lost``: the shell itself has ended (by ``exit``, or because it could not be saved) and needs another
``shell.open``; after a mere time-out it lives on in the same directory with its exported variables. An ``exec`` ends
with the connection that asked for it.
"""
