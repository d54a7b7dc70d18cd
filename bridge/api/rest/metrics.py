"""`GET /metrics`."""

from __future__ import annotations

from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from bridge.api.http.operations import Answer, operation
from bridge.api.metrics import Metrics

METRICS = web.AppKey("metrics", Metrics)


@operation(
    "Metrics for Prometheus",
    answers={200: Answer("Metrics in the text format.", media="text/plain", schema={"type": "string"})},
    page=True,
)
async def metrics(request: web.Request) -> web.Response:
    """GET /metrics"""
    figures = request.app[METRICS]
    await figures.look()
    # Not in another thread: this one updates the metrics.
    return web.Response(body=generate_latest(figures.registry), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})


def add_routes(app: web.Application) -> None:
    """Add the route."""
    app.router.add_get("/metrics", metrics)
