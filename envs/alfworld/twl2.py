"""Reads the ``.twl2`` text grammar that a game carries. Standard library only.

The reader follows TextWorld's (a TatSu parser) in what looks like accidents too, since the traces must be identical:
tabs are dropped between symbols, white space at the start of a line is dropped where a symbol begins, and a character
that fits no symbol silently ends the text.
"""

from __future__ import annotations

import json
import re
import textwrap
from functools import lru_cache

from envs.alfworld.grammar import CommandText, Each, Grammar, GrammarError, Node, Pattern, Rule, Symbol, Text, Value

_TABS = re.compile(r"[\t]+")
_LINE_START = re.compile(r"^(//.*|\s*)\n?", re.MULTILINE)
_TAG = re.compile(r"[\w()/!<>\-\s,.]+")
_GIVEN = re.compile(r"[^;|{}\n\[\]#]+")
_STATEMENT = re.compile(r"[^|\[\]{}\n<>]+")
_LITERAL = re.compile(r'[^;|"<>\[\]#{}]*')
_BAR = re.compile(r"\s*\|\s*")
_PREDICATE = re.compile(r"\s*(!?[\w/]+)\s*\(([^()]*)\)\s*$")

_PART = re.compile(
    r"""\s*(?: action\s+(?P<name>[\w/-]+)\s*\{(?P<body>(?:[^{}"]|"{3}.*?"{3}|"[^"]*")*)\}
         | grammar\s*::\s*\"{3}(?P<grammar>.*?)\"{3}\s*; )""",
    re.VERBOSE | re.DOTALL,
)
_FIELD = re.compile(r"""\s*(template|feedback|pddl|grammar)\s*::\s*("{3}.*?"{3}|"[^"]*")\s*;""", re.DOTALL)


@lru_cache(maxsize=64)
def parse_grammar(text: str) -> Grammar:
    """Read a ``.twl2`` text. Cached: the games of a split differ in the goal's line only."""
    texts: dict[str, list[dict[str, str]]] = {}
    commands: dict[str, CommandText] = {}
    at = 0
    while text[at:].strip():
        part = _PART.match(text, at)
        if part is None:
            raise GrammarError(f"Expected 'action name {{…}}' or 'grammar :: …', found {text[at : at + 40].strip()!r}.")
        at = part.end()
        if part["name"] is None:
            texts.update(_rules_of(part["grammar"]))
            continue
        fields = {m[1]: m[2] for m in _FIELD.finditer(part["body"])}
        if "grammar" in fields:
            block = textwrap.dedent(fields["grammar"][3:-3])
            texts.update(_rules_of("\n".join(b for b in block.split("\n") if not b.lstrip().startswith("#"))))
        commands[part["name"].lower()] = CommandText(
            template=read_template(fields["template"][1:-1]), feedback=read_template(fields["feedback"][1:-1])
        )
    rules = {
        name: tuple(Rule(_query(rule.get("condition", "")), read_template(rule["rhs"])) for rule in alternatives)
        for name, alternatives in texts.items()
    }
    return Grammar(rules, commands)


def _rules_of(block: str) -> dict[str, list[dict[str, str]]]:
    try:
        found: dict[str, list[dict[str, str]]] = json.loads(textwrap.dedent(block))
    except json.JSONDecodeError as error:
        raise GrammarError(f"A grammar block is not JSON: {error}.") from error
    return found


@lru_cache(maxsize=4096)
def read_template(text: str) -> tuple[Node, ...]:
    """The symbols of a right-hand side or a command template."""
    return tuple(_Reader(text).symbols())


class _Reader:
    """A right-hand side, read from left to right; ``None`` from a method means: not this form, nothing consumed."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def symbols(self) -> list[Node]:
        nodes: list[Node] = []
        while self.at < len(self.text):
            before = self.at
            node = self._list() or self._conditional(as_list=False) or self._nonterminal() or self._terminal()
            if self.at == before:
                break
            nodes.append(node)
        return nodes

    def _skip(self) -> None:
        """What may stand between symbols: comments and white space at the start of a line, tabs anywhere."""
        start = -1
        while start != self.at:
            start = self.at
            while (match := _LINE_START.match(self.text, self.at)) is not None:
                self.at = match.end()
                if not match[1]:
                    break
            if (match := _TABS.match(self.text, self.at)) is not None:
                self.at = match.end()

    def _token(self, token: str) -> bool:
        self._skip()
        if self.text.startswith(token, self.at):
            self.at += len(token)
            return True
        return False

    def _pattern(self, pattern: re.Pattern[str]) -> str | None:
        match = pattern.match(self.text, self.at)
        if match is None:
            return None
        self.at = match.end()
        return match[0]

    def _list(self) -> Each | None:
        start = self.at
        if self._token("["):
            inner = self._conditional(as_list=True)
            if inner is not None and self._token("]"):
                return inner
        self.at = start
        return None

    def _conditional(self, *, as_list: bool) -> Each | None:
        start = self.at
        if self._token("{"):
            expression = self._nonterminal() or self._value()
            if expression is not None:
                given = self._given()
                if self._token("}"):
                    return Each(expression, _query(given), as_list)
        self.at = start
        return None

    def _given(self) -> str:
        start = self.at
        if self._pattern(_BAR) is not None:
            self._skip()
            given = self._pattern(_GIVEN)
            if given is not None:
                return given
        self.at = start
        return ""

    def _nonterminal(self) -> Symbol | None:
        start = self.at
        if self._token("#"):
            self._skip()
            name = self._pattern(_TAG)
            if name is not None and self._token("#"):
                return Symbol(name)
        self.at = start
        return None

    def _value(self) -> Value | None:
        self._skip()
        source = self._pattern(_STATEMENT)
        return None if source is None else Value(source)

    def _terminal(self) -> Text:
        self._skip()
        start = self.at
        if self._token('"'):
            quoted = self._pattern(_LITERAL) or ""
            if self._token('"'):
                return Text(quoted)
        self.at = start
        return Text(self._pattern(_LITERAL) or "")


def _query(text: str) -> tuple[Pattern, ...]:
    patterns = []
    for part in text.split("&") if text.strip() else ():
        match = _PREDICATE.match(part)
        if match is None:
            raise GrammarError(f"Expected 'predicate(variable: type, …)', found {part.strip()!r}.")
        args = [arg.split(":") for arg in match[2].split(",") if arg.strip()]
        keys = (f"{arg[0].strip()}:{arg[-1].strip().rstrip(chr(39) if len(arg) == 1 else '')}" for arg in args)
        patterns.append(Pattern(match[1], tuple(keys)))
    return tuple(patterns)
