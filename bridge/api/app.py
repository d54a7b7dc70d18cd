"""The gateway process: it serves the REST and NATS APIs. Any number of gateways can share a NATS cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from aiohttp import web

from bridge.api.http import auth, middleware
from bridge.api.http.cors import preflight
from bridge.api.http.limits import BODY_MEMORY, limited
from bridge.api.http.operations import check_declared
from bridge.api.http.prefix import SETTINGS as PREFIX_SETTINGS
from bridge.api.http.prefix import checked_prefix
from bridge.api.http.protocol import GatewayRunner
from bridge.api.http.queries import checked_query
from bridge.api.http.replies import CONTROLS, GENERATION, INDEX, PROBE, ROSTER
from bridge.api.limits import BodyMemory, RateLimiter, Waits
from bridge.api.metrics import Metrics
from bridge.api.nats import NatsApi
from bridge.api.rest import metrics, openapi
from bridge.api.rest import service as rest
from bridge.api.rest.metrics import METRICS
from bridge.broker.connection import connect
from bridge.broker.control import PauseSwitch
from bridge.broker.fleet import Roster
from bridge.broker.jobs import JobQueue
from bridge.broker.probe import StoreProbe
from bridge.gateway.controls import Controls
from bridge.gateway.generation import Generation
from bridge.gateway.idempotency import KEEP_S as IDEMPOTENCY_S
from bridge.gateway.idempotency import IdempotencyKeys
from bridge.gateway.index import JobIndex
from bridge.gateway.limits import RequestLimits
from bridge.gateway.outside.callback_address import CallbackPolicy
from bridge.gateway.outside.image_urls import ImageUrls
from bridge.gateway.outside.webhooks import Webhooks
from bridge.gateway.requests import Limits
from bridge.gateway.s3 import Bucket, Exports
from bridge.modes.images_in import ImageLimits
from bridge.modes.library import SHIPPED_WORKFLOWS, ModeLibrary
from bridge.settings import Settings
from bridge.stopping import stop

SHUTDOWN_S = 2.0
"""How long open responses may take to end when the gateway stops."""


def make_app(settings: Settings, nats_url: str) -> web.Application:
    """The REST application. When it starts, it connects to NATS and serves the NATS API too.

    Raises SettingsError if the tokens cannot be read, or S3 cannot be used.
    """
    tokens = auth.Tokens(settings.tokens())
    bucket = Bucket.of(settings)
    limiter, waits = RateLimiter.of(settings), Waits(settings.max_waits)
    figures = Metrics(waits)
    guards = [
        middleware.accounted(figures),
        middleware.envelope,
        auth.same_origin(auth.own_hosts(settings), settings.cors_origins),
        auth.identify(tokens),
        # Before the token is checked, so that guessing it is limited too.
        limited(limiter, waits, body_timeout_s=settings.body_timeout_s),
        # Browsers send no token with the question whether they may send one.
        preflight(settings.cors_origins),
        auth.bearer_token(tokens),
        checked_prefix,
        checked_query,
    ]
    app = web.Application(middlewares=guards, client_max_size=settings.max_body_bytes)
    app[METRICS] = figures
    app[PREFIX_SETTINGS] = settings
    app[BODY_MEMORY] = BodyMemory(settings.max_bodies_bytes)
    app.on_response_prepare.append(middleware.common_headers(limiter, cors=bool(settings.cors_origins)))
    rest.add_routes(app)
    openapi.add_routes(app)
    metrics.add_routes(app)
    check_declared(app)

    async def connected(app: web.Application) -> AsyncIterator[None]:
        nc = await connect(nats_url, "imagegen-gateway", access=settings.nats_access)
        try:
            queue = await JobQueue.open(
                nc, max_pending=settings.max_pending, names=settings.names, retention=settings.retention
            )
            await queue.start_listening()
            index, roster = JobIndex(queue), Roster(nc, settings.names)
            queue.noted = index.note
            await roster.open()
            app[ROSTER] = roster
            await figures.follow(queue, index, roster)
            app[INDEX] = index
            keys = await IdempotencyKeys.open(
                nc.jetstream(), settings.names.idempotency, keep_s=min(IDEMPOTENCY_S, settings.retention.jobs_s)
            )
            exports = Exports(queue, bucket)
            callbacks = CallbackPolicy(settings.webhook_secret, settings.webhook_allow_private)
            generation = app[GENERATION] = Generation(
                queue,
                ModeLibrary([SHIPPED_WORKFLOWS, settings.workflows]),
                keys,
                timeout_s=settings.job_timeout_s,
                limits=request_limits(settings),
                callbacks=callbacks,
                disks=settings.disks,
                exports=exports,
                image_urls=ImageUrls(
                    settings.image_urls,
                    max_bytes=settings.max_image_bytes,
                    allow_private=settings.image_urls_allow_private,
                ),
            )
            app[PROBE] = StoreProbe(
                lambda: queue.nc, settings.names, disks=settings.disks, make_missing=queue.make_stores
            )
            switch = await PauseSwitch.open(nc, settings.names)
            queue.more_stores += [keys.make_store, switch.make_store]
            index.paused = lambda: switch.pause is not None
            controls = app[CONTROLS] = Controls(queue, index, roster, generation.models, switch)
            await NatsApi(generation, index, controls, limiter=limiter, waits=waits, metrics=figures).open()
            background = [asyncio.create_task(index.run()), asyncio.create_task(switch.follow())]
            background.append(asyncio.create_task(Webhooks(queue, callbacks, exports=exports).run()))
            background.append(asyncio.create_task(exports.run()))
            yield
            await stop(background)
        finally:
            await nc.close()

    app.cleanup_ctx.append(connected)
    return app


def request_limits(settings: Settings) -> Limits:
    """The limits of one request."""
    return Limits(
        body_bytes=settings.max_body_bytes,
        file_bytes=settings.max_file_bytes,
        image=ImageLimits(settings.max_image_bytes, settings.max_image_pixels, settings.max_decoded_pixels),
        request=RequestLimits.of(settings),
    )


async def run_gateway(settings: Settings, nats_url: str) -> None:
    """Serve until cancelled. Raises Unavailable if there is no NATS server, and OSError if the port is in use."""
    runner = GatewayRunner(
        make_app(settings, nats_url),
        settings,
        access_log=None,
        shutdown_timeout=SHUTDOWN_S,
        # aiohttp closes connections that have not sent all headers in this time, idle or slow on purpose.
        keepalive_timeout=settings.idle_timeout_s,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, settings.host, settings.port).start()
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
