"""The fields of a request, of the right type or refused."""

from __future__ import annotations

import base64
import binascii

from rock.guest.commands import DEFAULT_TIMEOUT_S
from rock.guest.errors import invalid

TYPE_CHECKING = False
if TYPE_CHECKING:  # a sandbox starts sooner without the typing module
    from typing import Any

_REQUIRED = object()


def field(request: dict[str, Any], name: str, kind: type, default: Any = _REQUIRED) -> Any:
    """The request's field, of the right type; a missing one, or null, is the default."""
    value = request.get(name)
    if value is None:
        if default is _REQUIRED:
            raise invalid("%s without %s" % (request.get("op"), name))
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise invalid("%s is %.80r, expected %s" % (name, value, kind.__name__))
    return value


def timeout(request: dict[str, Any]) -> float:
    value = request.get("timeout_s", DEFAULT_TIMEOUT_S)
    if value is None:
        return DEFAULT_TIMEOUT_S
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise invalid("timeout_s is %r, expected a number above 0" % (value,))
    return float(value)


def environment(request: dict[str, Any]) -> dict[str, Any]:
    environ: dict[str, Any] = field(request, "environ", dict, {})
    if not all(isinstance(value, str) for value in environ.values()):
        raise invalid("environ must map names to strings")
    return environ


def program(request: dict[str, Any]) -> list[Any]:
    argv: list[Any] = field(request, "argv", list)
    if not argv or not all(isinstance(word, str) and "\0" not in word for word in argv):
        raise invalid("argv is %r, expected a list of at least one string" % (argv,))
    return argv


def data(request: dict[str, Any], name: str) -> bytes:
    """What came behind the request's line, or in it as base64."""
    if "data" in request:
        return bytes(request["data"])
    try:
        return base64.b64decode(field(request, name, str, ""), validate=True)
    except binascii.Error as error:
        raise invalid("%s is not base64: %s" % (name, error)) from error
