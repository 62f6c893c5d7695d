"""What an operator does from the fleet's page: empty a node, give it back; restart, end, look into a sandbox.

Invariants: nothing is changed without a second click that names what will happen; what changes something is shown only
to a page with an admin's key that serves its own machine alone, because whoever reaches the page acts with that key;
a refusal is shown in the platform's own words.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

from dashboard import markup, snapshots
from dashboard.app import common
from dashboard.app.shell import show_shell
from dashboard.palette import Tone
from dashboard.sentences import Sentence
from dashboard.server import LOOPBACK
from rock.domain.nodes import NodeStanding
from rock.sdk import NodeView, RestartView, Rock, RockError, SandboxState, SandboxView

LINES = 200
ADMIN_S = 15.0
_OUT = frozenset({NodeStanding.CORDONED, NodeStanding.DRAINING})
_OVER = frozenset({SandboxState.FAILED, SandboxState.GONE})
_WHY = "asked for on the fleet's page"


@dataclass(frozen=True, slots=True)
class Action:
    """``says``: what will happen, in the words of the second click; ``done``: what has, from the platform's answer."""

    title: str
    says: str
    button: str
    done: Callable[[Any], str]
    do: Callable[[Rock], Awaitable[Any]]


def drain(node: str, reason: str) -> Action:
    says = (
        f"Node {node} gets no new leases and its warm pools are emptied; leases that recover move to other nodes, the "
        "others are waited for. Uncordon gives it back."
    )
    return Action(
        f"Drain {node}", says, "Drain", lambda _: f"{node} is being emptied.", lambda rock: rock.drain(node, reason)
    )


def cordon(node: str, reason: str) -> Action:
    says = f"Node {node} gets no new leases; those it has go on. Uncordon gives it back."
    done = f"{node} gets no new leases."
    return Action(f"Cordon {node}", says, "Cordon", lambda _: done, lambda rock: rock.cordon(node, reason))


def uncordon(node: str) -> Action:
    says = f"Node {node} takes leases again, and its warm pools fill."
    done = f"{node} takes leases again."
    return Action(f"Uncordon {node}", says, "Uncordon", lambda _: done, lambda rock: rock.uncordon(node))


def remove(sandbox: SandboxView) -> Action:
    held = " A lease holds it: its episode goes on in another sandbox if it can be replayed, else it is void."
    says = f"Sandbox {sandbox.id} is killed and removed, with everything in it." + (held if sandbox.lease_id else "")
    done = f"{sandbox.id} is gone."
    return Action(f"Remove {sandbox.id}", says, "Remove", lambda _: done, lambda rock: rock.remove_sandbox(sandbox.id))


def restart(sandbox: SandboxView) -> Action:
    if sandbox.lease_id:
        what = (
            "ended, and its lease goes on in another, where its episode is replayed. It is refused if that cannot be."
        )
    else:
        what = "ended. Nobody holds it; its warm pool starts another."
    says = f"Sandbox {sandbox.id} is {what}"
    return Action(
        f"Restart {sandbox.id}", says, "Restart", _restarted, lambda rock: rock.restart_sandbox(sandbox.id, reason=_WHY)
    )


def _restarted(answer: RestartView) -> str:
    if answer.outcome == "moved":
        where = (
            f"goes on in {answer.replacement}" if answer.replacement else "goes on in another as soon as one is there"
        )
        return f"{answer.sandbox_id} is gone; its lease {where}."
    return f"{answer.sandbox_id} is gone" + ("; its lease is lost." if answer.outcome == "lost" else ".")


def may_act() -> tuple[bool, str]:
    """Whether to show what changes something, and if not, why."""
    if st.get_option("server.address") not in LOOPBACK:
        return False, "this page is served to other machines too, so it only reads; use `rock node` and `rock sandbox`"
    admin = common.source().read("admin", lambda rock, _: snapshots.is_admin(rock), fresh_s=ADMIN_S)
    if not admin.value:
        return False, "this page's key may only read; draining and removing need one of scope admin in $ROCK_KEY"
    return True, ""


@st.fragment
def operate() -> None:
    """Below the fleet. It does not refresh by itself: what one is about to act on must not move. So it asks anew each
    time: an answer from before the last action would stay."""
    reading = common.source().read("fleet", snapshots.fleet, fresh_s=0.0)
    if reading.value is None:
        return
    allowed, why = may_act()
    st.html(markup.heading("Operate", "each action asks once more" if allowed else why))
    told = st.session_state.pop("action_told", None)
    if told is not None:
        st.html(markup.banner(told))
    nodes, boxes = st.columns(2, gap="medium")
    with boxes:
        _sandbox([*reading.value.sandboxes, *reading.value.failed], allowed)
    if allowed:
        with nodes:
            _node(reading.value.nodes)


def _node(nodes: Sequence[NodeView]) -> None:
    by_name = {node.name: node for node in nodes}
    if not by_name:
        return
    chosen = st.selectbox("Node", list(by_name), key="act_node")
    reason = st.text_input("Reason", key="act_reason", placeholder="reason, for the events", max_chars=200)
    first, second, third = st.columns(3)
    out = by_name[chosen].standing in _OUT
    if first.button("Drain …", key="drain", width="stretch"):
        confirm(drain(chosen, reason))
    if second.button("Cordon …", key="cordon", width="stretch", disabled=out):
        confirm(cordon(chosen, reason))
    if third.button("Uncordon …", key="uncordon", width="stretch", disabled=not out):
        confirm(uncordon(chosen))


def _sandbox(sandboxes: Sequence[SandboxView], allowed: bool) -> None:
    by_id = {s.id: s for s in sandboxes}
    if not by_id:
        return
    chosen = st.selectbox(
        "Sandbox",
        list(by_id),
        key="act_sandbox",
        format_func=lambda i: (
            f"{i} · {by_id[i].state.value} · {by_id[i].spec.env or by_id[i].spec.image}" if i in by_id else i
        ),
    )
    view = by_id[chosen]
    living = view.state not in _OVER
    if living:
        _usage(view)
    logs, shell, again, end = st.columns(4)
    if logs.button("Output", key="logs", width="stretch", help=f"The last {LINES} lines; kept after its death"):
        show_logs(chosen)
    if not allowed:
        return
    if shell.button(
        "Shell …", key="shell", width="stretch", disabled=not view.lease_id, help="Of those that somebody holds"
    ):
        show_shell(chosen)
    if again.button("Restart …", key="restart", width="stretch", disabled=not living):
        confirm(restart(view))
    if end.button("Remove …", key="remove", width="stretch", disabled=not living):
        confirm(remove(view))


@st.fragment(run_every=common.LIVE_S)
def _usage(view: SandboxView) -> None:
    """What the chosen sandbox takes; nothing where its runtime does not count."""
    reading = common.source().read(("stats", view.id), lambda rock, _: rock.sandbox_stats(view.id))
    if reading.value is not None and not reading.missing:
        st.html(markup.usage(reading.value, view.spec.limits.cpus))


@st.dialog("Are you sure?")
def confirm(action: Action) -> None:
    st.html(markup.question(action.title, action.says))
    yes, no = st.columns(2)
    if yes.button(action.button, type="primary", key="confirmed", width="stretch"):
        try:
            answer = common.source().act(action.do)
        except RockError as refusal:
            said = f"{action.title} was refused: {refusal.message.rstrip('.')}. {refusal.hint}".strip()
            st.session_state["action_told"] = Sentence(Tone.BAD, said)
        else:
            st.session_state["action_told"] = Sentence(Tone.GOOD, action.done(answer))
        st.rerun()
    if no.button("Leave it", key="left", width="stretch"):
        st.rerun()


@st.dialog("Output", width="large")
def show_logs(sandbox_id: str) -> None:
    try:
        view = common.source().act(lambda rock: rock.logs(sandbox_id, lines=LINES))
    except RockError as error:
        st.html(markup.empty(f"No output of {sandbox_id}", str(error)))
        return
    st.html(markup.heading(sandbox_id, f"the last {len(view.lines)} lines of guest and environment"))
    st.html(markup.output("\n".join(view.lines) or "(it printed nothing)"))
