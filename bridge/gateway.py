"""The gateway: one process that opens the doors. Any number of them may share a NATS cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from aiohttp import web

from bridge.api import middleware, openapi, rest
from bridge.api.nats_doors import NatsDoor
from bridge.generation import Generation
from bridge.jobs import JobQueue, connect
from bridge.modes import SHIPPED_WORKFLOWS, ModeLibrary
from bridge.settings import Settings

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


def make_app(settings: Settings, nats_url: str) -> web.Application:
    """The REST application. It connects to NATS when it starts, and opens the NATS door beside its own."""
    # With a token the service may have any name: a stranger's page does not know the token.
    own_hosts = None if settings.token else {*LOOPBACK_NAMES, settings.host}
    guards = [middleware.envelope, middleware.same_origin(own_hosts)]
    if settings.token:
        guards.append(middleware.bearer_token(settings.token))
    app = web.Application(middlewares=guards, client_max_size=rest.MAX_BODY_BYTES)
    app.add_routes(rest.routes)
    openapi.add_routes(app)

    async def generation(app: web.Application) -> AsyncIterator[None]:
        nc = await connect(nats_url, "imagegen-gateway")
        try:
            queue = await JobQueue.open(nc, max_pending=settings.max_pending)
            await queue.start_listening()
            modes = ModeLibrary([SHIPPED_WORKFLOWS, settings.workflows])
            app[rest.GENERATION] = Generation(queue, modes, timeout_s=settings.job_timeout_s)
            await NatsDoor(app[rest.GENERATION]).open()
            yield
        finally:
            await nc.close()

    app.cleanup_ctx.append(generation)
    return app


async def run_gateway(settings: Settings, nats_url: str) -> None:
    """Serve until cancelled. Raises Unavailable without NATS, and OSError where the port is taken."""
    runner = web.AppRunner(make_app(settings, nats_url), access_log=None, shutdown_timeout=2.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, settings.host, settings.port).start()
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
