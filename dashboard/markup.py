"""HTML fragments for what Streamlit has no widget for. Pure: values in, escaped HTML out.

Everything that comes from the platform is escaped: observations, the model's own text and error messages are written by
programs nobody vouches for. Colours come from the style sheet's variables, so a fragment suits both themes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from html import escape

from dashboard import text
from dashboard.episode_frames import ending
from dashboard.frames import Account, Failure
from dashboard.palette import LEDGER_TONES, OUTCOME_TONES, SANDBOX_TONES, STANDING_TONES, Tone
from dashboard.sentences import Sentence
from rock.domain.nodes import NodeStanding
from rock.domain.sandbox import MEANING
from rock.sdk import EpisodeRecord, NodeView, QuarantineView, SandboxState, SandboxStats, TurnRecord

LONG_TEXT = 1400  # characters; a longer observation is folded


def banner(sentence: Sentence, note: str = "") -> str:
    """The sentence at the top of a page; ``note`` says where it comes from and when."""
    small = f'<div class="rk-note">{escape(note)}</div>' if note else ""
    return f'<div class="rk-banner rk-{sentence.tone}" role="status"><div>{escape(sentence.text)}</div>{small}</div>'


def heading(title: str, note: str = "") -> str:
    """A section's title with the window and source of what follows."""
    small = f'<span class="rk-note">{escape(note)}</span>' if note else ""
    return f'<div class="rk-heading"><h2>{escape(title)}</h2>{small}</div>'


def tiles(items: Iterable[tuple[str, str, str, Tone | None]]) -> str:
    """Numbers in a row: label, value, window or source, and the tone of the value."""
    cells = "".join(
        f'<div class="rk-tile"><div class="rk-label">{escape(label)}</div>'
        f'<div class="rk-value{f" rk-ink-{tone}" if tone else ""}">{escape(value)}</div>'
        f'<div class="rk-note">{escape(note)}</div></div>'
        for label, value, note, tone in items
    )
    return f'<div class="rk-tiles">{cells}</div>'


def empty(title: str, say: str, commands: Sequence[str] = ()) -> str:
    """Nothing to show, and what to type to change that."""
    lines = "".join(f"<code>{escape(c)}</code>" for c in commands)
    return f'<div class="rk-empty"><b>{escape(title)}</b><p>{escape(say)}</p>{lines}</div>'


# --- fleet -----------------------------------------------------------------------------------------------------------


def state_strip(counts: Mapping[SandboxState, int]) -> str:
    """Living sandboxes as one bar, with a legend that says what each state means."""
    parts = "".join(
        f'<span class="rk-fill-{SANDBOX_TONES[state]}" style="flex:{n}" title="{n} {state.value}"></span>'
        for state, n in counts.items()
    )
    legend = "".join(
        f'<li title="{escape(MEANING[state])}"><i class="rk-fill-{SANDBOX_TONES[state]}"></i>'
        f"<b>{n:,}</b> {state.value}</li>"
        for state, n in counts.items()
    )
    return f'<div class="rk-strip">{parts}</div><ul class="rk-legend">{legend}</ul>'


def gauge(label: str, share: float, value: str, tone: Tone = Tone.POLICY) -> str:
    """A labelled bar from 0 to 1; nearly full turns amber."""
    share = min(1.0, max(0.0, share))
    tone = Tone.VOID if share > 0.9 and tone is not Tone.NEUTRAL else tone
    return (
        f'<div class="rk-gauge"><span class="rk-label">{escape(label)}</span><span>{escape(value)}</span>'
        f'<div class="rk-track"><span class="rk-fill-{tone}" style="width:{share:.1%}"></span></div></div>'
    )


def usage(stats: SandboxStats, cpus: float) -> str:
    """What one sandbox takes of what it may."""
    bars = [
        gauge("CPU", stats.cpu_share / cpus, f"{stats.cpu_share:.2f} of {cpus:g}, {text.duration(stats.cpu_s)} so far"),
        gauge(
            "memory",
            _share(stats.memory_bytes, stats.memory_limit_bytes),
            _of(stats.memory_bytes, stats.memory_limit_bytes),
        ),
    ]
    if stats.disk_bytes is not None:
        limit = stats.disk_limit_bytes or 0
        bars.append(gauge("disk", _share(stats.disk_bytes, limit), _of(stats.disk_bytes, limit)))
    note = (
        f"{text.plural(stats.pids, 'process', 'processes and threads')}, as its node counted at {text.clock(stats.at)}"
    )
    return f'<div class="rk-usage">{"".join(bars)}<span class="rk-note">{escape(note)}</span></div>'


def _share(used: float, limit: float) -> float:
    return used / limit if limit else 0.0


def _of(used: int, limit: int) -> str:
    return f"{text.size(used)} of {text.size(limit)}" if limit else text.size(used)


def node_card(node: NodeView, uptime: str) -> str:
    used = sum(n for state, n in node.sandboxes.items() if state not in {SandboxState.GONE, SandboxState.FAILED})
    memory = node.memory_used_bytes / node.memory_total_bytes if node.memory_total_bytes else 0.0
    chip = _node_chip(node)
    why = node.standing_detail or (node.detail if not node.healthy else "")
    detail = f'<p class="rk-note rk-ink-bad">{escape(why)}</p>' if why and chip != _UP else ""
    pools = "".join(
        f"<tr><td>{escape(p.env or p.image)}</td>"
        f"<td>{f'{p.ready}/{max(p.level, p.target)}' if p.target else text.NOTHING}</td><td>{p.starting}</td>"
        f"<td>{p.waiting}</td>"
        f"<td>{p.claims:,}</td><td>{p.misses:,}</td></tr>"
        for p in node.pools
    )
    table = (
        '<table class="rk-table"><thead><tr><th>warm pool</th><th>ready</th><th>starting</th>'
        '<th title="claims that wait for a sandbox now">waiting</th><th>claims</th>'
        '<th title="claims that found no ready sandbox and had to wait for a start">misses</th></tr></thead>'
        f"<tbody>{pools}</tbody></table>"
        if pools
        else '<p class="rk-note">No warm pool: each sandbox is started when it is asked for.</p>'
    )
    return (
        f'<div class="rk-card"><div class="rk-card-head"><b>{escape(node.name)}</b>{chip}'
        f'<span class="rk-note">{escape(node.runtime)} · up {escape(uptime)} · {node.claims:,} claims · '
        f"{text.plural(node.failures, 'failure')} since start</span></div>{detail}"
        + gauge("sandboxes", used / node.capacity if node.capacity else 0.0, f"{used:,} of {node.capacity:,}")
        + gauge("CPU", node.cpu_percent / 100, f"{node.cpu_percent:.0f}%")
        + gauge("memory", memory, f"{text.size(node.memory_used_bytes)} of {text.size(node.memory_total_bytes)}")
        + f"{table}</div>"
    )


def _node_chip(node: NodeView) -> str:
    if node.standing is NodeStanding.UP:
        return _UP if node.healthy else chip("unhealthy", Tone.BAD)
    return chip(node.standing.value, STANDING_TONES[node.standing])


def quarantine_table(held: Iterable[QuarantineView], when: Callable[[datetime], str]) -> str:
    """What is refused until somebody clears it, each with the command that does."""
    rows = "".join(
        f"<tr><td>{chip(q.kind, Tone.VOID)}</td><td>{escape(q.name)}</td><td>{q.failures:,}</td>"
        f"<td>{escape(when(q.since))}</td><td>{escape(q.reason)}</td>"
        f"<td><code>rock quarantine clear {escape(q.subject)}</code></td></tr>"
        for q in held
    )
    return (
        '<table class="rk-table"><thead><tr><th>what</th><th>name</th><th>failures</th><th>since</th><th>why</th>'
        f"<th>to try it again</th></tr></thead><tbody>{rows}</tbody></table>"
    )


def failure_item(failure: Failure, when: str) -> str:
    """One failure: the reason in the line, the evidence unfolded by a click."""
    facts = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in failure.evidence)
    output = "\n".join(failure.last_output)
    last = f'<div class="rk-label">last output</div><pre>{escape(output)}</pre>' if output else ""
    body = f"<dl>{facts}</dl>{last}" if facts or last else '<p class="rk-note">No further evidence was kept.</p>'
    return (
        f'<details class="rk-failure"><summary><span class="rk-note">{escape(when)}</span>'
        f"{chip(failure.cause, Tone.BAD)}"
        f"<code>{escape(failure.sandbox)}</code><span>{escape(failure.detail)}</span></summary>{body}</details>"
    )


def question(title: str, says: str) -> str:
    """What will be done, before it is."""
    return f'<div class="rk-confirm"><b>{escape(title)}</b><p>{escape(says)}</p></div>'


def output(lines: str) -> str:
    """What a program printed."""
    return f'<pre class="rk-output">{escape(lines)}</pre>'


def chip(label: str, tone: Tone) -> str:
    """A word on a ground of its meaning's colour."""
    return f'<span class="rk-chip rk-{tone}">{escape(label)}</span>'


_UP = chip("up", Tone.GOOD)


# --- run -------------------------------------------------------------------------------------------------------------


def ledger_table(accounts: Sequence[Account], dispatched: int) -> str:
    """Dispatched, and where each of them ended."""
    rows = "".join(
        f'<tr><td><i class="rk-dot rk-fill-{LEDGER_TONES[a.state]}"></i>{a.state.value.replace("_", " ")}'
        f'<div class="rk-note">{escape(a.meaning)}</div></td>'
        f'<td class="rk-bar"><div class="rk-track"><span class="rk-fill-{LEDGER_TONES[a.state]}" '
        f'style="width:{a.share:.2%}"></span></div></td><td>{a.episodes:,}</td><td>{text.percent(a.share, 1)}</td>'
        f"<td>{text.number(a.tokens)}</td><td>{text.duration(a.sandbox_s)}</td></tr>"
        for a in accounts
    )
    tokens, seconds = sum(a.tokens for a in accounts), sum(a.sandbox_s for a in accounts)
    total = (
        f'<tr class="rk-total"><td>dispatched</td><td class="rk-bar"></td><td>{dispatched:,}</td><td>100%</td>'
        f"<td>{text.number(tokens)}</td><td>{text.duration(seconds)}</td></tr>"
    )
    return (
        '<table class="rk-table rk-ledger"><thead><tr><th>account</th><th class="rk-bar"></th><th>episodes</th>'
        f"<th>share</th><th>tokens</th><th>sandbox time</th></tr></thead><tbody>{total}{rows}</tbody></table>"
    )


# --- episode ---------------------------------------------------------------------------------------------------------

RESULT_TONES: dict[str, Tone] = {**OUTCOME_TONES, "success": Tone.GOOD, "failure": Tone.NEUTRAL}


def episode_banner(episode: EpisodeRecord) -> str:
    """How the episode ended and what that counts for."""
    result = ending(episode)
    turns = text.plural(episode.turn_count, "turn")
    reward = "" if episode.reward is None else f" with reward {text.number(episode.reward)}"
    said = {
        "success": f"Success{reward} after {turns}.",
        "failure": f"The environment ended it without success{reward}, after {turns}.",
        "completed": f"Completed{reward} after {turns}.",
        "truncated": f"Cut off by a limit after {turns}{reward}. It counts.",
        "void": "Void: something broke that was not the policy's doing. It has no reward and was never trained on.",
        "cancelled": "Cancelled before its end. It counts for nothing.",
    }[result]
    why = f" Reason: {episode.reason}." if episode.reason else ""
    if episode.recoveries:
        times = text.plural(episode.recoveries, "time")
        why += f" Its sandbox was lost {times} in mid-episode, and the episode replayed in another."
    return banner(Sentence(RESULT_TONES[result], said + why))


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Small labelled values, wrapping as the width allows."""
    cells = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in pairs)
    return f'<dl class="rk-facts">{cells}</dl>'


def turn_card(
    index: int,
    turn: TurnRecord,
    *,
    previous_version: int | None = None,
    advantage: float | None = None,
    recovered: Sequence[str] = (),
) -> str:
    """One exchange: what the policy saw, what it said, what it did, and what that cost and earned. ``advantage``: the
    mean of its tokens; ``recovered``: how it went on after each loss of the sandbox in this turn."""
    newer = previous_version is not None and turn.policy_version != previous_version
    version = f"policy v{turn.policy_version}" + (" (new weights)" if newer else "")
    meta = [
        f"{turn.tokens:,} tokens",
        version,
        f"mean log-prob {turn.mean_logprob:.3f}",
        *([f"mean advantage {advantage:+.3f}"] if advantage is not None else []),
        f"generate {text.duration(turn.generate_s)}",
        f"environment {text.duration(turn.env_s)}",
    ]
    tone = Tone.GOOD if turn.reward > 0 else Tone.BAD if turn.reward < 0 else Tone.FAINT
    reward = chip(f"reward {text.number(turn.reward)}", tone)
    lost = "".join(
        f'<p class="rk-lost">{chip("recovered", Tone.VOID)} <span class="rk-note">{escape(said)}</span></p>'
        for said in recovered
    )
    return (
        f'<article class="rk-turn"><div class="rk-turn-no" title="turn {index}">{index}</div><div class="rk-turn-body">'
        f'{lost}<div class="rk-label">observation</div>{_foldable(turn.observation)}'
        f'<div class="rk-label">response</div><pre class="rk-said">{_response(turn.response)}</pre>'
        f'<div class="rk-act"><span class="rk-label">action</span><code>{escape(turn.action) or "(none)"}</code>'
        f"{reward}"
        f'<span class="rk-note">{escape(" · ".join(meta))}</span></div></div></article>'
    )


def _foldable(content: str) -> str:
    if len(content) <= LONG_TEXT:
        return f'<pre class="rk-seen">{escape(content)}</pre>'
    head = escape(content[:LONG_TEXT])
    return (
        f'<pre class="rk-seen">{head}…</pre><details class="rk-more"><summary>all {len(content):,} characters</summary>'
        f'<pre class="rk-seen">{escape(content)}</pre></details>'
    )


_THOUGHT = re.compile(r"&lt;think&gt;.*?(?:&lt;/think&gt;|$)", re.DOTALL)


def _response(said: str) -> str:
    """The model's own text, thoughts dimmed."""
    return _THOUGHT.sub(lambda m: f'<span class="rk-thought">{m.group(0)}</span>', escape(said)) or "(nothing)"
