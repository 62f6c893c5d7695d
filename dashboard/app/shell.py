"""Commands in a sandbox, one after the other, from the fleet's page."""

from __future__ import annotations

import streamlit as st

from dashboard import markup, shell_lines
from dashboard.app import common
from dashboard.shell_lines import Said
from rock.sdk import RockError

TIMEOUT_S = 60.0
_SLACK_S = 15.0  # the platform's own, above the command's
KEPT = 50


@st.dialog("Shell", width="large")
def show_shell(sandbox_id: str) -> None:
    said: list[Said] = st.session_state.setdefault(f"shell of {sandbox_id}", [])
    at = f"directory of {sandbox_id}"
    note = f"run by sh, up to {TIMEOUT_S:.0f} s each; the directory is kept. What is changed, its episode finds changed"
    st.html(markup.heading(sandbox_id, note))
    shown = st.container()
    with st.form("shell_form", clear_on_submit=True, border=False):
        line, button = st.columns([6, 1], vertical_alignment="bottom")
        command = line.text_input("Command", placeholder="ls -l /", label_visibility="collapsed")
        asked = button.form_submit_button("Run", width="stretch")
    if asked and command and command.strip():
        cwd = st.session_state.get(at, "")
        request = shell_lines.request(cwd, command, TIMEOUT_S)
        try:
            result = common.source().act(lambda rock: rock.exec(sandbox_id, request), timeout_s=TIMEOUT_S + _SLACK_S)
        except RockError as error:
            shown.html(markup.empty(f"Not run in {sandbox_id}", f"{error.message} {error.hint}".strip()))
        else:
            answer, st.session_state[at] = shell_lines.answered(cwd, command, result)
            said.append(answer)
            del said[:-KEPT]
    shown.html(shell_lines.transcript(said, TIMEOUT_S) or "<span></span>")
