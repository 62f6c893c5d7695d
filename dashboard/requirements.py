"""What the page and the report need beside the platform, and what to say where it is missing."""

from __future__ import annotations

import importlib.util

from rock.sdk import InvalidRequest

_CHARTS = ("plotly", "pandas")


def require_page() -> None:
    """Raises InvalidRequest where the page cannot be served."""
    _require("dashboard", ("streamlit", *_CHARTS))


def require_charts(command: str) -> None:
    """Raises InvalidRequest where ``rock COMMAND`` could draw nothing."""
    _require(command, _CHARTS)


def _require(command: str, names: tuple[str, ...]) -> None:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise InvalidRequest(
            f"rock {command} needs {', '.join(missing)}, which this installation lacks.",
            hint="Install it with: pip install 'rock-roll[dashboard]'",
        )
