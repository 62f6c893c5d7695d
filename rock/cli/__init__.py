"""The `rock` command: one module per command, wiring only. What a command does lives in the platform or its SDK.

Modules import what they need inside the commands, so that ``rock --help`` stays quick.
"""
