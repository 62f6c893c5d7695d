"""Entry script: one app, seven pages. Served by ``rock dashboard``; see ``dashboard.server`` for how."""

from __future__ import annotations

import streamlit as st

from dashboard.app import common, compare, episode, fleet, incidents, morning, rhythm, run

LOGO = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 150 24"><path d="M2 20 9 6l5 8 3-4 5 10z" fill="#3a63d8"/>'
    '<circle cx="20" cy="5" r="2.6" fill="#2aa563"/><text x="30" y="17.5" font-family="sans-serif" font-size="14.5" '
    'font-weight="700" letter-spacing=".4" fill="#7d8796">ROCK &amp; ROLL</text></svg>'
)
ICON = LOGO.replace("0 0 150 24", "0 0 24 24")

st.set_page_config(page_title="ROCK & ROLL", page_icon=ICON, layout="wide", initial_sidebar_state="collapsed")
common.style()
st.logo(LOGO)
st.navigation(
    [
        st.Page(morning.page, title="Morning", default=True),
        st.Page(fleet.page, title="Fleet", url_path="fleet"),
        st.Page(run.page, title="Run", url_path="run"),
        st.Page(compare.page, title="Compare", url_path="compare"),
        st.Page(incidents.page, title="Incidents", url_path="incidents"),
        st.Page(episode.page, title="Episode", url_path="episode"),
        st.Page(rhythm.page, title="Rhythm", url_path="rhythm"),
    ],
    position="top",
).run()
# After the page: what others lead with must not keep this one waiting.
common.remember()
