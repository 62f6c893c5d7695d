"""The page people look at: the fleet, a run, one episode. Reads the platform through ``rock.sdk`` and owns no state.

``text``, ``frames``, ``sentences``, ``figures`` and ``markup`` are pure: wire models in; words, tables, charts and HTML
out. ``source`` is the only door to the platform and remembers the last good answer. ``app`` holds the Streamlit pages,
``server`` and ``cli`` the process that serves them.
"""
