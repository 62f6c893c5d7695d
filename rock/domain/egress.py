"""Which addresses outside a sandbox may speak to: a list of rules, matched against names and the addresses they have.

A rule is ``host``, ``*.suffix`` (names below it, not itself) or an address, with ``:port`` or without: then 80 and 443.
Pure. Invariant: an address that is not of the public internet is reached only if it stands in the list itself, whatever
name leads to it: whoever owns a listed name, and points it at this machine or its network, gains nothing by that.
``localhost`` is such an address: nobody owns it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

DEFAULT_PORTS = (80, 443)
MAX_RULES = 256
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Rule:
    host: str
    """In lower case; without the ``*.`` of a wildcard."""
    port: int | None
    wildcard: bool = False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'*.' if self.wildcard else ''}{host}{f':{self.port}' if self.port is not None else ''}"

    def allows(self, host: str, port: int) -> bool:
        if port != self.port if self.port is not None else port not in DEFAULT_PORTS:
            return False
        return host.endswith("." + self.host) if self.wildcard else host == self.host


def parse_rule(text: str) -> Rule:
    """Raises ValueError saying what is wrong and what was expected."""
    host, port = _split(text.strip().lower(), text)
    wildcard = host.startswith("*.")
    host = host[2:] if wildcard else host
    if (address := address_of(host)) is not None:
        if wildcard:
            raise ValueError(f"{text!r}: an address has no names below it")
        return Rule(str(address), port)
    host = host.removesuffix(".")
    if "*" in host or not host:
        raise ValueError(f"{text!r}: a star stands only for what is before a name's dot, as in '*.example.org'")
    labels = host.split(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels) or labels[-1].isdigit():
        raise ValueError(
            f"{text!r} is no host name; expected something like 'pypi.org', '*.example.org' or 'host:8443'"
        )
    return Rule(host, port, wildcard)


def _split(text: str, said: str) -> tuple[str, int | None]:
    """Host and port of ``host``, ``host:port``, ``[v6]``, ``[v6]:port`` or a bare version 6 address."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{said!r}: expected '[address]' or '[address]:port'")
        port_text = rest[1:] if rest else None
    elif text.count(":") > 1:
        return text, None
    else:
        host, colon, after = text.partition(":")
        port_text = after if colon else None
    if port_text is None:
        return host, None
    if not (port_text.isascii() and port_text.isdigit() and 1 <= int(port_text) <= 65535):
        raise ValueError(f"{said!r}: the port is {port_text!r}, expected 1 to 65535")
    return host, int(port_text)


def address_of(text: str) -> _Address | None:
    """The address that ``text`` writes in the usual way; None for a name (also for ``0x7f.1`` and the like)."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def canonical(host: str) -> str:
    """How a host is compared: lower case, no final dot, an address in its one usual form."""
    host = host.strip("[]").lower().removesuffix(".")
    address = address_of(host)
    return str(address) if address is not None else host


def is_public(address: _Address) -> bool:
    """Whether it is of the public internet, also if it is wrapped into another one."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast


@dataclass(frozen=True, slots=True)
class Egress:
    rules: tuple[Rule, ...]

    @classmethod
    def of(cls, texts: Iterable[str]) -> Egress:
        return cls(tuple(parse_rule(text) for text in texts))

    def refusal_of_name(self, host: str, port: int) -> str:
        """Why ``host`` may not be spoken to on ``port``; empty if it may, as far as the name tells."""
        if any(rule.allows(canonical(host), port) for rule in self.rules):
            return ""
        listed = [
            str(rule) for rule in self.rules if Rule(rule.host, port, rule.wildcard).allows(canonical(host), port)
        ]
        if listed:
            return f"port {port} is not in the list, which has {', '.join(listed)}"
        return f"it is not in the list, which has {', '.join(map(str, self.rules)) or 'nothing'}"

    def allowed_addresses(self, host: str, port: int, addresses: Sequence[str]) -> tuple[list[str], str]:
        """Of what the name stands for, that may be connected to; and why the rest may not, if that is all of them."""
        host = canonical(host)
        good: list[str] = []
        bad: list[str] = []
        for text in addresses:
            address = address_of(text.partition("%")[0])
            if address is None:
                continue
            listed = any(rule.allows(str(address), port) for rule in self.rules)
            loopback = host == "localhost" and address.is_loopback
            (good if listed or loopback or is_public(address) else bad).append(str(address))
        if good or not bad:
            return good, ""
        where = f"its address {bad[0]} is" if bad[0] != host else "it is"
        return [], f"{where} not of the public internet, and {bad[0]}:{port} is not in the list"
