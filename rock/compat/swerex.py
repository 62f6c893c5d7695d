"""A sandbox behind the HTTP interface of a SWE-ReX runtime: agents that use its ``RemoteRuntime`` run in it unchanged.

Invariants: one server is one sandbox, held by a lease of the server's own; every request needs the token; a request
sent again under the same id gets the same answer and does nothing twice; failures leave here as the exceptions that the
client knows. Different from SWE-ReX: a command whose time is up is killed and its session stays usable, and there are
no interactive programs in sessions (they are refused).
"""

from __future__ import annotations

import asyncio
import hmac
import io
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.responses import JSONResponse, Response

from rock.compat.swerex_messages import (
    Action,
    BashAction,
    BashInterrupt,
    CloseSession,
    Command,
    CreateSession,
    ReadFile,
    Refusal,
    WriteFile,
)
from rock.domain.errors import NotFound, RockError
from rock.sdk import Sandbox, Shell

NO_LIMIT_S = 86_400.0
_REMEMBERED = 64
_UPLOAD_PIECE = 1 << 20


class Runtime:
    """The operations, on one sandbox."""

    def __init__(self, box: Sandbox) -> None:
        self._box = box
        self._sessions: dict[str, Shell] = {}

    async def create_session(self, request: CreateSession) -> dict[str, Any]:
        if request.session in self._sessions:
            raise Refusal("SessionExistsError", f"session {request.session} already exists")
        shell = self._box.shell(environ={"PS1": ""})
        output = ""
        for path in request.startup_source:
            output += (await shell.run(f"source {_quoted(path)}", timeout_s=max(1.0, request.startup_timeout))).output
        if not request.startup_source:
            await shell.run(":")
        self._sessions[request.session] = shell
        return {"output": output, "session_type": "bash"}

    async def run_in_session(self, action: Action) -> dict[str, Any]:
        shell = self._session(action.session)
        if isinstance(action, BashInterrupt):
            await shell.interrupt()
            return _observed("", 0)
        if action.is_interactive_command or action.is_interactive_quit:
            raise Refusal(
                "SwerexException", "interactive programs are not offered by this runtime; run them with input"
            )
        limit_s = NO_LIMIT_S if action.timeout is None else action.timeout
        result = await shell.run(action.command, timeout_s=limit_s)
        if result.timed_out:
            text = f"timeout after {action.timeout} seconds while running command {action.command!r}"
            raise Refusal("CommandTimeoutError", text)
        if result.exit_code in (1, 2) and "syntax error" in result.output and not await self._valid(action.command):
            raise Refusal("BashIncorrectSyntaxError", f"Error (syntax) in command {action.command!r}: {result.output}")
        if action.check == "raise" and result.exit_code:
            raise Refusal("NonZeroExitCodeError", _failed(action, result.exit_code, f"Output:\n{result.output!r}"))
        return _observed(result.output, None if action.check == "ignore" else result.exit_code)

    async def _valid(self, command: str) -> bool:
        return (await self._box.exec(["bash", "-n"], stdin=command)).exit_code == 0

    async def close_session(self, request: CloseSession) -> dict[str, Any]:
        await self._session(request.session).close()
        del self._sessions[request.session]
        return {"session_type": "bash"}

    def _session(self, name: str) -> Shell:
        if name not in self._sessions:
            raise Refusal("SessionDoesNotExistError", f"session {name!r} does not exist")
        return self._sessions[name]

    async def execute(self, request: Command) -> dict[str, Any]:
        words = [request.command] if isinstance(request.command, str) else request.command
        argv = ["sh", "-c", *words] if request.shell else words
        if request.merge_output_streams:
            argv = ["sh", "-c", 'exec "$@" 2>&1', "sh", *argv]
        limit_s = NO_LIMIT_S if request.timeout is None else request.timeout
        try:
            result = await self._box.exec(argv, cwd=request.cwd or "", environ=request.env, timeout_s=limit_s)
        except NotFound as error:
            raise Refusal("builtins.FileNotFoundError", error.message) from error
        if result.timed_out:
            raise Refusal("CommandTimeoutError", f"Timeout ({request.timeout}s) exceeded while running command")
        if request.check and result.exit_code:
            said = f"Stdout:\n{result.stdout!r}\nStderr:\n{result.stderr!r}"
            raise Refusal("NonZeroExitCodeError", _failed(request, result.exit_code, said))
        return {"stdout": result.stdout, "stderr": result.stderr, "exit_code": result.exit_code}

    async def read_file(self, request: ReadFile) -> dict[str, Any]:
        try:
            data = await self._box.read_file(request.path)
        except NotFound as error:
            raise Refusal("builtins.FileNotFoundError", error.message) from error
        try:
            return {"content": data.decode(request.encoding or "utf-8", request.errors or "strict")}
        except (UnicodeDecodeError, LookupError) as error:
            raise Refusal("builtins.ValueError", f"{request.path}: {error}") from error

    async def write_file(self, request: WriteFile) -> dict[str, Any]:
        await self._box.write_file(request.path, request.content)
        return {}

    async def upload(self, data: bytes, target: str, unzip: bool) -> dict[str, Any]:
        if not unzip:
            await self._box.write_file(target, data)
            return {}
        with tempfile.TemporaryDirectory() as folder:
            try:
                await asyncio.to_thread(_unzip, data, Path(folder))
            except zipfile.BadZipFile as error:
                raise Refusal("builtins.ValueError", f"the upload is no zip archive: {error}") from error
            await self._box.upload(folder, target)
        return {}

    async def close(self) -> dict[str, Any]:
        for shell in self._sessions.values():
            await shell.close()
        self._sessions.clear()
        return {}


def create_app(box: Sandbox, token: str) -> FastAPI:
    """The server's application. Every request needs ``X-API-Key: token``."""
    runtime = Runtime(box)
    app = FastAPI(title="SWE-ReX runtime on a rock sandbox", openapi_url=None)
    _add_guards(app, token)

    @app.get("/")
    async def root() -> dict[str, str]:
        return {"message": f"sandbox {box.id}"}

    @app.get("/is_alive")
    async def is_alive() -> dict[str, Any]:
        try:
            await box.usage()
        except RockError as error:
            return {"is_alive": False, "message": error.message}
        return {"is_alive": True, "message": ""}

    @app.post("/upload")
    async def upload(request: Request) -> dict[str, Any]:
        async with request.form(max_part_size=1 << 30) as form:
            file = form["file"]
            data = await file.read() if not isinstance(file, str) else file.encode()
            return await runtime.upload(data, str(form["target_path"]), str(form.get("unzip", "false")) == "true")

    app.post("/create_session")(runtime.create_session)
    app.post("/run_in_session")(runtime.run_in_session)
    app.post("/close_session")(runtime.close_session)
    app.post("/execute")(runtime.execute)
    app.post("/read_file")(runtime.read_file)
    app.post("/write_file")(runtime.write_file)
    app.post("/close")(runtime.close)
    return app


def _add_guards(app: FastAPI, token: str) -> None:
    answers: OrderedDict[str, asyncio.Future[Response]] = OrderedDict()

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        if not hmac.compare_digest(request.headers.get("X-API-Key", "").encode(), token.encode()):
            return JSONResponse({"detail": "Invalid API Key"}, status_code=401)
        request_id = request.headers.get("X-Request-ID", "")
        if not request_id:
            return await call_next(request)
        if request_id not in answers:
            answers[request_id] = asyncio.ensure_future(_whole(call_next(request)))
            while len(answers) > _REMEMBERED:
                answers.popitem(last=False)
        body = await asyncio.shield(answers[request_id])
        return Response(body.body, status_code=body.status_code, media_type="application/json")

    @app.exception_handler(Refusal)
    async def refused(_: Request, error: Refusal) -> JSONResponse:
        return _transferred(error.class_path, error.message)

    @app.exception_handler(RockError)
    async def lost(_: Request, error: RockError) -> JSONResponse:
        return _transferred("swerex.exceptions.SwerexException", f"{error.message} {error.hint}".strip())

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"detail": str(error.errors()[0])}, status_code=422)


async def _whole(answer: Awaitable[Response]) -> Response:
    response = await answer
    body = b"".join([chunk async for chunk in response.body_iterator])  # type: ignore[attr-defined]  # a stream
    return Response(body, status_code=response.status_code)


def _transferred(class_path: str, message: str) -> JSONResponse:
    content = {"message": message, "class_path": class_path, "traceback": "", "extra_info": {}}
    return JSONResponse({"swerexception": content}, status_code=511)


def _observed(output: str, exit_code: int | None) -> dict[str, Any]:
    return {
        "output": output,
        "exit_code": exit_code,
        "failure_reason": "",
        "expect_string": "",
        "session_type": "bash",
    }


def _failed(request: BashAction | Command, exit_code: int, said: str) -> str:
    text = f"Command {request.command!r} failed with exit code {exit_code}. {said}"
    return f"{request.error_msg}: {text}" if request.error_msg else text


def _unzip(data: bytes, folder: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        archive.extractall(folder)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\"'\"'") + "'"
