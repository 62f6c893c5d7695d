"""``python -m dashboard.app.serve …``: what ``streamlit run …`` does, with all that the pages import read beforehand.

Streamlit would read it for the first visitor, who waits for seconds (pandas, plotly).
"""

from __future__ import annotations

import sys
from pathlib import Path

from streamlit.web.cli import main

from dashboard.app import compare, episode, fleet, incidents, morning, rhythm, run  # noqa: F401

MAIN = Path(__file__).parent / "main.py"

if __name__ == "__main__":
    sys.argv[1:1] = ["run", str(MAIN)]
    main(prog_name="streamlit")
