"""The messages on the wire: pydantic models shared by api, sdk, node and control."""
