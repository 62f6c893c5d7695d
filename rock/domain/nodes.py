"""What control makes of a node: its standing, and the only ways from one to the next. Pure."""

from __future__ import annotations

from enum import StrEnum


class NodeStanding(StrEnum):
    UP = "up"
    SUSPECT = "suspect"
    DEAD = "dead"
    EJECTED = "ejected"
    CORDONED = "cordoned"
    DRAINING = "draining"


MEANING: dict[NodeStanding, str] = {
    NodeStanding.UP: "Answers; gets new leases.",
    NodeStanding.SUSPECT: "Missed a heartbeat; gets no new leases until it answers again.",
    NodeStanding.DEAD: "Silent so long that its leases were moved; what it still holds when it returns is fenced.",
    NodeStanding.EJECTED: "Much slower than its peers; gets no new leases for a while, then is tried again.",
    NodeStanding.CORDONED: "An operator wants no new leases on it; those it has go on.",
    NodeStanding.DRAINING: "Cordoned, and its leases are being moved or waited for.",
}
