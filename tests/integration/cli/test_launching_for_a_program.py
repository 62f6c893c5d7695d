"""A program that has a platform started for it, and is interrupted or refused meanwhile."""

from __future__ import annotations

import socket
from pathlib import Path

import psutil
import pytest

from rock.sdk import DeadlineExceeded, PlatformUnavailable, ensure_platform


def servers_of(home: Path) -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline"]) if str(home) in (p.info["cmdline"] or [])]


def test_giving_up_leaves_no_platform_behind(rock_home: Path) -> None:
    with pytest.raises(DeadlineExceeded):
        ensure_platform(runtime="fake", port=0, timeout_s=0.2)
    assert servers_of(rock_home) == []
    assert not (rock_home / "server.json").exists()


def test_the_reason_of_a_refusal_is_passed_on(rock_home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PlatformUnavailable, match=f"Port {port}"):
            ensure_platform(runtime="fake", port=port)


def test_an_address_that_was_given_is_never_replaced_by_another(rock_home: Path) -> None:
    with pytest.raises(PlatformUnavailable, match=r"127\.0\.0\.1:9"):
        ensure_platform(url="http://127.0.0.1:9")
    assert servers_of(rock_home) == []
