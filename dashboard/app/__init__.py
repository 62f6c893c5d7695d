"""The Streamlit pages: layout and widgets only. ``main`` is the script that Streamlit runs."""
