"""Errors as the guest sends them: the codes of ``rock.domain.errors``, which the guest must not import (Python 3.8)."""


class GuestError(Exception):
    """An answer that is an error. ``code`` is one of the platform's error codes, such as ``conflict``."""

    def __init__(self, code, detail, hint="", cause=""):
        # type: (str, str, str, str) -> None
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.hint = hint
        self.cause = cause

    def frame(self):
        # type: () -> dict
        return {"type": "urn:rock:" + self.code, "detail": self.detail, "hint": self.hint, "cause": self.cause}


def invalid(detail, hint=""):
    # type: (str, str) -> GuestError
    return GuestError("invalid-request", detail, hint)
