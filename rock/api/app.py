"""The application: routes under /v1, Prometheus at /metrics, documentation at /docs."""

from __future__ import annotations

from fastapi import Depends, FastAPI, Response
from fastapi.responses import PlainTextResponse

from rock.api import openapi, problems
from rock.api.event_stream import stream_router
from rock.api.fleet_routes import fleet_router
from rock.api.guard import Guard
from rock.api.key_routes import key_router
from rock.api.metrics import MetricsPage
from rock.api.node_routes import node_router
from rock.api.quarantine_routes import quarantine_router
from rock.api.rules import permit
from rock.api.run_routes import run_router
from rock.control.control import Control
from rock.wire.secrets import secret


def create_app(control: Control, *, key: str | None = None) -> FastAPI:
    """``key``: the owner's, good for everything; None takes ``ROCK_KEY``, or what the file named by ``ROCK_KEY_FILE``
    holds. Empty: a key is asked for only if some were made (``rock key create``)."""
    app = FastAPI(
        title="ROCK",
        summary="Sandboxes for agents: leased, supervised, single-use.",
        description="Errors are problem documents (RFC 9457) with `detail`, `hint`, `cause` and whose `fault` it was.",
        version="1",
        dependencies=[Depends(permit)],
    )
    app.state.control = control
    app.state.key = _owners(control, secret("ROCK_KEY") if key is None else key)
    app.state.reachable = False  # whether others than this machine reach it; the server knows
    problems.install(app)
    openapi.install(app)
    app.include_router(fleet_router(control), prefix="/v1")
    app.include_router(node_router(control), prefix="/v1")
    app.include_router(run_router(control), prefix="/v1")
    app.include_router(key_router(control), prefix="/v1")
    app.include_router(quarantine_router(control), prefix="/v1")
    app.include_router(stream_router(control), prefix="/v1")

    page = MetricsPage(control)

    @app.get("/metrics", tags=["platform"], summary="For Prometheus", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Counters, gauges and histograms in Prometheus' text format; docs/platform.md describes them."""
        return await page.response()

    app.add_middleware(Guard, key=app.state.key, keys=control.keys, measures=page.requests)
    return app


def _owners(control: Control, key: str) -> str:
    """A key that was made here keeps the scope it was made with, also where its holder starts the platform anew with it
    in the environment, as clients have it."""
    return "" if key and control.keys.identify(key.encode()) is not None else key
