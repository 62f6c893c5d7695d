"""Errors as the guest sends them: the codes of ``rock.domain.errors``, which the guest must not import (Python 3.8)."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # a sandbox starts sooner without the typing module
    from typing import Any


class GuestError(Exception):
    """An answer that is an error. ``code`` is one of the platform's error codes, such as ``conflict``."""

    def __init__(self, code: str, detail: str, hint: str = "", cause: str = "") -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.hint = hint
        self.cause = cause

    def frame(self) -> dict[str, Any]:
        return {"type": "urn:rock:" + self.code, "detail": self.detail, "hint": self.hint, "cause": self.cause}


def invalid(detail: str, hint: str = "") -> GuestError:
    return GuestError("invalid-request", detail, hint)
