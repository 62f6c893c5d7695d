"""What a recipe says of programs that play episodes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from roll_core.config.section import Seconds, Section


class Agent(Section):
    """The program that plays an episode, where `rollout.source` is `agent`; see docs/agents.md."""

    command: tuple[str, ...] = ()
    """Program and arguments, started anew for each episode on the trainer's machine. No shell is involved.
    `{agents}` in an argument stands for the folder of the programs that come with the trainer. An exit status other
    than 0 makes the episode void, unless it was over already or a limit was reached."""
    entry: str = ""
    """Instead of `command`: a coroutine function as `module:function`, called in the trainer's process for each
    episode."""
    environ: dict[str, str] = Field(default_factory=dict)
    """`command` only: environment variables, beside those that say where everything is. Of the trainer's own it gets
    none but `PATH`, `HOME`, `LANG`, `TMPDIR`, `VIRTUAL_ENV` and `PYTHONPATH`."""
    finish: str | None = None
    """Last action, given to the environment when the program has ended well and the episode is not over, e.g. one that
    submits. `null`: the episode is then truncated, with the reward it has."""
    grace_s: Seconds = 10.0
    """How long the program may go on when the episode is over or a limit was reached; then it is ended."""
    host: str = "127.0.0.1"
    """Address that the endpoint binds. Every episode has a key of its own; nobody is let in without one."""
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Its port; 0: any that is free."""
    model: str = "policy"
    """Name of the model at the endpoint."""

    @model_validator(mode="after")
    def _one_program(self) -> Agent:
        if self.command and self.entry:
            raise ValueError("agent.command and agent.entry are two programs: leave one out")
        if self.entry and not all(self.entry.partition(":")):
            raise ValueError(f"agent.entry {self.entry!r} must be module:function")
        return self
