"""What may leave a sandbox: names, ports, and what a name stands for."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rock.domain.egress import Egress, Rule, is_public, parse_rule

_LABEL = st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True)
_NAME = st.lists(_LABEL, min_size=2, max_size=4).map(".".join)
_PORT = st.integers(1, 65535)
_V4 = st.integers(0, 2**32 - 1).map(ipaddress.IPv4Address)


@given(_NAME, st.none() | _PORT, st.booleans())
def test_a_rule_is_read_as_it_is_written(host: str, port: int | None, wildcard: bool) -> None:
    rule = Rule(host, port, wildcard)
    assert parse_rule(str(rule)) == parse_rule(f" {str(rule).upper()} ") == rule


@given(_NAME, _LABEL, _PORT)
def test_a_name_allows_itself_and_a_star_what_is_below_it(host: str, label: str, port: int) -> None:
    exact, star = Egress.of([f"{host}:{port}"]), Egress.of([f"*.{host}:{port}"])
    below = f"{label}.{host}"
    assert not exact.refusal_of_name(host, port)
    assert not exact.refusal_of_name(host.upper() + ".", port)
    assert exact.refusal_of_name(below, port)
    assert star.refusal_of_name(host, port)
    assert not star.refusal_of_name(below, port)
    assert star.refusal_of_name(f"{label}{host}", port), "a suffix is cut at a dot only"
    assert star.refusal_of_name(f"{below}.0{label}", port), "what comes after the suffix counts"


@given(_NAME, _PORT, _PORT)
def test_a_port_allows_itself_and_none_the_two_of_the_web(host: str, port: int, asked: int) -> None:
    assert (not Egress.of([f"{host}:{port}"]).refusal_of_name(host, asked)) == (port == asked)
    assert (not Egress.of([host]).refusal_of_name(host, asked)) == (asked in (80, 443))


@given(_NAME, _PORT, _V4)
def test_a_listed_name_leads_nowhere_but_to_the_public_internet(host: str, port: int, address: object) -> None:
    """Whoever owns the name gains nothing by pointing it at the machine or its network."""
    for wrapped in (str(address), f"::ffff:{address}"):
        found, why = Egress.of([f"{host}:{port}"]).allowed_addresses(host, port, [wrapped])
        assert bool(found) == is_public(ipaddress.ip_address(str(address)))
        assert bool(why) != bool(found)
    listed = Egress.of([f"{host}:{port}", f"{address}:{port}"])
    assert listed.allowed_addresses(host, port, [str(address)]) == ([str(address)], "")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.17.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "0.0.0.0",
        "100.64.0.1",
        "224.0.0.1",
        "::1",
        "fe80::1",
        "fc00::1",
        "::",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "ff02::1",
    ],
)
def test_what_is_not_of_the_public_internet(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


def test_public_addresses_are() -> None:
    assert is_public(ipaddress.ip_address("151.101.0.223"))
    assert is_public(ipaddress.ip_address("2a04:4e42::223"))
    assert is_public(ipaddress.ip_address("64:ff9b::9765:df"))


def test_of_several_addresses_the_good_ones_are_used() -> None:
    good, why = Egress.of(["pypi.org"]).allowed_addresses("pypi.org", 443, ["10.0.0.1", "151.101.0.223"])
    assert (good, why) == (["151.101.0.223"], "")


def test_localhost_stands_for_itself_and_for_nothing_else() -> None:
    egress = Egress.of(["localhost:8080"])
    assert egress.allowed_addresses("localhost", 8080, ["127.0.0.1", "::1"])[0] == ["127.0.0.1", "::1"]
    assert egress.allowed_addresses("localhost", 8080, ["10.0.0.1"])[0] == []


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("*", "star"),
        ("a.*.org", "star"),
        ("*.", "star"),
        ("", "star"),
        ("https://pypi.org", "port"),
        ("pypi.org:0", "port"),
        ("pypi.org:https", "port"),
        ("pypi.org/simple", "host name"),
        ("bücher.example", "host name"),
        ("127.1", "host name"),
        ("*.127.0.0.1", "address"),
        ("[::1", "address"),
    ],
)
def test_a_rule_that_is_none_is_refused_by_name(text: str, word: str) -> None:
    with pytest.raises(ValueError, match=word) as found:
        parse_rule(text)
    assert repr(text) in str(found.value)


@pytest.mark.parametrize("host", ["0x7f.1", "2130706433", "127.1", "localhost.", "[::1]"])
def test_other_ways_to_write_an_address_match_no_name(host: str) -> None:
    assert Egress.of(["127.0.0.1", "*.example.org"]).refusal_of_name(host, 80)
