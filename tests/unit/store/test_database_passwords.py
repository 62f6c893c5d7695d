"""A password that is kept apart from the database's URL gets into it, whatever characters it has."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import make_url

from rock.store.database import with_password


@given(st.text(st.characters(exclude_categories=("Cs",)), min_size=1))
def test_any_password_comes_out_of_the_url_as_it_went_in(password: str) -> None:
    url = make_url(with_password("postgresql://rock@db.example.org:5433/rock?ssl=require", password))
    assert url.password == password
    assert (url.username, url.host, url.port, url.database) == ("rock", "db.example.org", 5433, "rock")
    assert url.query == {"ssl": "require"}


def test_a_socket_directory_survives() -> None:
    url = make_url(with_password("postgresql://rock@/rock?host=/var/run/postgresql", "p@ss/word"))
    assert (url.password, url.host, url.query["host"]) == ("p@ss/word", None, "/var/run/postgresql")


@pytest.mark.parametrize("text", ["", "/data/rock.db", "postgresql://rock:own@db/rock", "postgresql://no port:x/"])
def test_what_needs_no_password_stays_as_it_is(text: str) -> None:
    assert with_password(text, "other") == text
    assert with_password("postgresql://rock@db/rock", "") == "postgresql://rock@db/rock"
