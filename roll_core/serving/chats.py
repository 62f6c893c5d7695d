"""What was said in a session, as a tree: a request that extends it appends, one that does not begins a branch.

Each node is an answer: the tokens in front of it and what was sampled. A path from a root is a chat, and its tokens are
exactly those the policy read and sampled. Invariants: nothing sampled is tokenised again; a request goes on from the
deepest answer whose chat its messages repeat, so branches share what they have in common; an answer that a client
changed is no answer of the policy, and comes back as context.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from roll_core.serving.rendering import Renderer, Said, Setting, Unrenderable
from roll_core.types import Generation


@dataclass(slots=True, eq=False, repr=False)
class Node:
    """One answer. ``heard``: the messages since the answer before."""

    parent: Node | None
    setting: Setting
    heard: tuple[Said, ...]
    context_ids: tuple[int, ...]
    generation: Generation
    answer: Said
    number: int
    """How many answers of the session came before."""
    valid: bool = True
    reward: float = 0.0
    generate_s: float = 0.0
    env_s: float = 0.0
    children: list[Node] = field(default_factory=list)

    def path(self) -> list[Node]:
        """From the root to here."""
        nodes: list[Node] = []
        node: Node | None = self
        while node is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]

    def ids(self) -> list[int]:
        return [i for n in self.path() for ids in (n.context_ids, n.generation.token_ids) for i in ids]


@dataclass(frozen=True, slots=True)
class Prompt:
    """Where a request goes on, and what it appends there."""

    parent: Node | None
    setting: Setting
    heard: tuple[Said, ...]
    context_ids: tuple[int, ...]

    def ids(self) -> list[int]:
        return [*(self.parent.ids() if self.parent else ()), *self.context_ids]


class Chats:
    """The chats of one session."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self.roots: list[Node] = []
        self.count = 0
        self.last: Node | None = None

    def prompt(self, messages: Sequence[Said], setting: Setting) -> Prompt:
        """Raises Unrenderable when the template takes the messages in no way."""
        for node, used in self._known(messages, setting):
            rest = tuple(messages[used:])
            if not rest:  # the chat ends with an answer: it is asked for another
                continue
            try:
                ids = self._renderer.following(rest, setting, node.generation.token_ids)
            except Unrenderable:
                continue
            return Prompt(node, setting, rest, tuple(ids))
        return Prompt(None, setting, tuple(messages), tuple(self._renderer.opening(messages, setting)))

    def _known(self, messages: Sequence[Said], setting: Setting) -> Iterator[tuple[Node, int]]:
        """Answers whose chat ``messages`` begin with, deepest first, and how many messages that is."""
        found: list[tuple[Node, int]] = []
        stack = [(root, 0) for root in self.roots if root.setting == setting]
        while stack:
            node, at = stack.pop()
            end = at + len(node.heard)
            if end >= len(messages) or tuple(messages[at:end]) != node.heard or not same(messages[end], node.answer):
                continue
            found.append((node, end + 1))
            stack += [(child, end + 1) for child in node.children]
        # Of equal chats the latest: it is the one the client has just been answered with.
        yield from sorted(found, key=lambda one: (one[1], one[0].number), reverse=True)

    def add(self, prompt: Prompt, generation: Generation, answer: Said, *, valid: bool, generate_s: float) -> Node:
        node = Node(
            prompt.parent, prompt.setting, prompt.heard, prompt.context_ids, generation, answer, self.count,
            valid=valid, generate_s=generate_s,
        )  # fmt: skip
        (prompt.parent.children if prompt.parent else self.roots).append(node)
        self.count += 1
        self.last = node
        return node

    def nodes(self) -> list[Node]:
        """All answers, in the order in which they were given."""
        stack, found = list(self.roots), list[Node]()
        while stack:
            node = stack.pop()
            found.append(node)
            stack += node.children
        return sorted(found, key=lambda node: node.number)

    def main(self) -> list[Node]:
        """The chat with the most sampled tokens; of equals, the one that was spoken in last."""
        best: tuple[int, int] = (-1, -1)
        path: list[Node] = []
        for node in self.nodes():
            if node.children:
                continue
            nodes = node.path()
            size = sum(len(n.generation.token_ids) for n in nodes)
            if (size, node.number) > best:
                best, path = (size, node.number), nodes
        return path


def same(given: Said, answer: Said) -> bool:
    """Whether ``given`` is the answer as its client was told it. White space at the ends is lost on the way, calls are
    written anew, ids of calls are the client's own."""
    if given.role != "assistant" or given.text.strip() != answer.text.strip():
        return False
    mine, theirs = ([(call.name, call.object) for call in said.calls] for said in (answer, given))
    return mine == theirs
