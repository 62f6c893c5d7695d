"""Where the final answer stands in a response, and in the reference solution of a data set."""

from __future__ import annotations

import re

MAX_CHARACTERS = 500
"""Of an answer: what is longer is no final answer."""

_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_LABELLED = re.compile(r"answer\s*(?:is\s*)?:", re.IGNORECASE)
_GSM8K = "####"


def final_answer(text: str) -> str:
    """In the last ``\\boxed{…}``, else the last <answer> tag, else after the last ``####`` or ``answer:``, else the
    last line. Without the dollar signs around it; empty if there is none or it is too long for an answer."""
    found = (
        _last_boxed(text)
        or _last(_TAGGED.findall(text))
        or _after(text, _GSM8K)
        or _after(text, _last([m.group() for m in _LABELLED.finditer(text)]))
        or _last([line for line in text.splitlines() if line.strip()])
    )
    found = found.strip().removesuffix(".").strip().strip("$").strip()
    return found if len(found) <= MAX_CHARACTERS else ""


def _last(found: list[str]) -> str:
    return found[-1] if found else ""


def _after(text: str, mark: str) -> str:
    """The rest of the line after the last ``mark``."""
    if not mark or mark not in text:
        return ""
    rest = text.rpartition(mark)[2].strip()
    return rest.splitlines()[0] if rest else ""


def _last_boxed(text: str) -> str:
    """The content of the last box whose braces close."""
    for match in reversed(list(_BOXED.finditer(text))[-20:]):
        depth = 1
        for i in range(match.end(), min(len(text), match.end() + MAX_CHARACTERS + 1)):
            depth += (text[i] == "{") - (text[i] == "}")
            if depth == 0:
                return text[match.end() : i]
    return ""
