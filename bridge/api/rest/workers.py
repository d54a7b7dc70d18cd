"""The workers that gateways hear from."""

from __future__ import annotations

from aiohttp import web

from bridge.api.http.operations import Answer, operation
from bridge.api.http.replies import ROSTER, reply
from bridge.contract import WorkerList

routes = web.RouteTableDef()


@routes.get("/v1/workers")
@operation("List the workers of the last minute", answers={200: Answer("The workers.", WorkerList)})
async def workers(request: web.Request) -> web.Response:
    """The workers, with the age of their last heartbeat."""
    return reply(await request.app[ROSTER].list())
