"""What SWE-ReX's client (1.4) sends and expects, as far as it concerns a sandbox. Fields it adds are ignored."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field


class CreateSession(BaseModel):
    session: str = "default"
    startup_source: list[str] = []
    startup_timeout: float = 1.0


class BashAction(BaseModel):
    action_type: Literal["bash"] = "bash"
    command: str
    session: str = "default"
    timeout: float | None = None
    is_interactive_command: bool = False
    is_interactive_quit: bool = False
    check: Literal["silent", "raise", "ignore"] = "raise"
    error_msg: str = ""
    expect: list[str] = []


class BashInterrupt(BaseModel):
    action_type: Literal["bash_interrupt"] = "bash_interrupt"
    session: str = "default"


Action = Annotated[BashAction | BashInterrupt, Field(discriminator="action_type")]


class CloseSession(BaseModel):
    session: str = "default"


class Command(BaseModel):
    command: str | list[str]
    timeout: float | None = None
    shell: bool = False
    check: bool = False
    error_msg: str = ""
    env: dict[str, str] | None = None
    cwd: str | None = None
    merge_output_streams: bool = False


class ReadFile(BaseModel):
    path: str
    encoding: str | None = None
    errors: str | None = None


class WriteFile(BaseModel):
    path: str
    content: str


class Refusal(Exception):
    """An exception that the client raises on its side. ``kind``: a class of ``swerex.exceptions``, or a builtin."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.class_path = kind if "." in kind else f"swerex.exceptions.{kind}"
        self.message = message
