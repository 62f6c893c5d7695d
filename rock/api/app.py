"""The application: routes under /v1, Prometheus at /metrics, documentation at /docs."""

from __future__ import annotations

import os

from fastapi import FastAPI, Response

from rock.api import problems
from rock.api.fleet_routes import fleet_router
from rock.api.guard import Guard
from rock.api.metrics import metrics_response
from rock.api.run_routes import run_router
from rock.control.control import Control


def create_app(control: Control, *, key: str | None = None) -> FastAPI:
    """``key``: what clients must send as a bearer token; None takes ``ROCK_KEY``, empty asks for none."""
    app = FastAPI(
        title="ROCK",
        summary="Sandboxes for agents: leased, supervised, single-use.",
        description="Errors are problem documents (RFC 9457) with `detail`, `hint`, `cause` and whose `fault` it was.",
        version="1",
        responses=problems.RESPONSES,
    )
    app.state.control = control
    app.state.key = os.environ.get("ROCK_KEY", "") if key is None else key
    problems.install(app)
    app.include_router(fleet_router(control), prefix="/v1")
    app.include_router(run_router(control), prefix="/v1")

    @app.get("/metrics", tags=["platform"], summary="For Prometheus", response_class=Response)
    async def metrics() -> Response:
        return await metrics_response(control)

    app.add_middleware(Guard, key=app.state.key)
    return app
