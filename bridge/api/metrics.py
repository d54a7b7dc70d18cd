"""Prometheus metrics: requests to this gateway, jobs of the cluster, and the workers it hears from.

Labels are bounded: modes and models beyond the limit become `other`. Every gateway reports the gauges of jobs and
workers, which are the same everywhere. Only one gateway counts each event (counters, histograms), so sums over gateways
are correct. docs/MONITORING.md explains every metric.
"""

from __future__ import annotations

import asyncio
import logging
import platform
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator

from nats.aio.msg import Msg
from nats.js.errors import NotFoundError
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from pydantic import ValidationError

from bridge import __version__
from bridge.api.limits import Waits
from bridge.broker.connection import BROKER_ERRORS
from bridge.broker.fleet import Roster
from bridge.broker.jobs import JobQueue
from bridge.contract import JobResultEvent, JobState, JobStatus, WorkerEntry, read_answer
from bridge.gateway.index import JobIndex

log = logging.getLogger(__name__)

OTHER = "other"
MAX_NAMES = 100
"""The number of modes, and of models, that become labels; the others are `other`."""
MAX_WORKERS = 200
NOT_STALE_S = 20.0
"""A worker that has been silent for this long counts as down."""
LOOK_TIMEOUT_S = 2.0
COUNTERS_GROUP = "metrics"
"""Gateways share the result events, so that each is counted once."""
JOB_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1800)
REQUEST_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5, 30, 120, 600)


class Labels:
    """The values of a label: the first MAX_NAMES names that are `known`."""

    def __init__(self, known: Callable[[str], bool] = lambda _: True) -> None:
        self._known = known
        self._seen: set[str] = set()

    def label(self, name: str | None) -> str:
        """The label for a name; empty for None."""
        if not name or name in self._seen:
            return name or ""
        if len(self._seen) >= MAX_NAMES or not self._known(name):
            return OTHER
        self._seen.add(name)
        return name


class Metrics:
    """The metrics of one gateway. `modes` and `models` hold the names that become labels."""

    def __init__(self, waits: Waits) -> None:
        self.registry = registry = CollectorRegistry()
        self.modes, self.models = Labels(), Labels()
        self._waits = waits
        self._queue: JobQueue | None = None
        self._index: JobIndex | None = None
        self._roster: Roster | None = None
        self._depth: int | None = None
        self._workers: list[WorkerEntry] = []
        build = Gauge(
            "imagegen_build_info", "Always 1; the labels hold the versions.", ["version", "python"], registry=registry
        )
        build.labels(__version__, platform.python_version()).set(1)
        self._requests = Counter(
            "imagegen_http_requests", "HTTP requests answered.", ["method", "route", "status"], registry=registry
        )
        self._request_seconds = Histogram(
            "imagegen_http_request_seconds",
            "Time until the last byte of the response.",
            ["route"],
            registry=registry,
            buckets=REQUEST_SECONDS,
        )
        self._nats_requests = Counter(
            "imagegen_nats_requests",
            "NATS requests answered; code is ok, or the code of the error.",
            ["code"],
            registry=registry,
        )
        self._codes = Labels()
        self._accepted = Counter(
            "imagegen_jobs_accepted", "Jobs that this gateway queued.", ["mode", "model"], registry=registry
        )
        self._finished = Counter(
            "imagegen_jobs_finished", "Jobs that ended.", ["state", "mode", "model"], registry=registry
        )
        self._wait_seconds = Histogram(
            "imagegen_job_wait_seconds",
            "Time from acceptance to start.",
            ["mode"],
            registry=registry,
            buckets=JOB_SECONDS,
        )
        self._run_seconds = Histogram(
            "imagegen_job_run_seconds",
            "Time from start to end, for jobs that are done.",
            ["mode", "model"],
            registry=registry,
            buckets=JOB_SECONDS,
        )
        registry.register(_View(self._gauges))
        ProcessCollector(registry=registry)

    async def follow(self, queue: JobQueue, index: JobIndex, roster: Roster) -> None:
        """Start counting ended jobs, and read the gauges from these."""
        self._queue, self._index, self._roster = queue, index, roster
        queue.accepted = self.job_accepted
        await queue.nc.subscribe(queue.names.result, queue=COUNTERS_GROUP, cb=self._on_result)

    # -- counters ------------------------------------------------------------------------------------------------

    def request_ended(self, method: str, route: str, status: int, seconds: float) -> None:
        """A REST request was answered."""
        self._requests.labels(method, route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def nats_request_ended(self, code: str) -> None:
        """A NATS request was replied to; `code` is that of the error, or ok."""
        self._nats_requests.labels(self._codes.label(code)).inc()

    def job_accepted(self, state: JobState) -> None:
        """This gateway queued a job."""
        self._accepted.labels(self.modes.label(state.mode), self.models.label(state.model)).inc()

    async def _on_result(self, msg: Msg) -> None:
        try:
            ended = read_answer(JobResultEvent, msg.data)
        except ValidationError:
            log.warning("a message on %s is not the result of a job", msg.subject)
            return
        mode, model = self.modes.label(ended.mode), self.models.label(ended.model)
        self._finished.labels(ended.status.value, mode, model).inc()
        if ended.status is JobStatus.DONE:
            self._wait_seconds.labels(mode).observe(ended.queue_time_ms / 1000)
            self._run_seconds.labels(mode, model).observe(ended.generation_time_ms / 1000)

    # -- gauges ----------------------------------------------------------------------------------------------

    async def look(self) -> None:
        """Read the values for the gauges from the broker and the roster. Values that cannot be read are left out."""
        if self._queue is None or self._roster is None:
            return
        self._depth = None
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_S):
                info = await self._queue.nc.jetstream().stream_info(self._queue.names.stream)
                self._depth = info.state.messages
        except (*BROKER_ERRORS, NotFoundError) as error:
            log.info("the broker does not report the depth of the queue: %s", error or type(error).__name__)
        self._workers = (await self._roster.list()).workers[:MAX_WORKERS]

    def _gauges(self) -> Iterator[Metric]:
        yield _gauge("imagegen_nats_up", "Whether this gateway is connected to NATS.", [((), self._connected)])
        if self._index is not None:
            paused = [((), self._index.paused())]
            yield _gauge("imagegen_queue_paused", "Whether the queue is paused.", paused)
        if self._depth is not None:
            yield _gauge("imagegen_queue_depth", "Jobs that are accepted and have not ended.", [((), self._depth)])
        yield self._jobs()
        waits = [((route,), count) for route, count in self._waits.open.items()]
        yield _gauge("imagegen_waits", "Open requests that wait, and event streams, by route.", waits, ["route"])
        yield from self._worker_gauges()

    @property
    def _connected(self) -> bool:
        return self._queue is not None and self._queue.nc.is_connected

    def _jobs(self) -> Metric:
        entries = self._index.newest_first() if self._index else ()
        tally = Tally(
            (entry.status.value, self.modes.label(entry.key.mode), self.models.label(entry.key.model))
            for entry in entries
        )
        text = "Jobs by state; ended jobs count until the retention removes them."
        return _gauge("imagegen_jobs", text, tally.items(), ["state", "mode", "model"])

    def _worker_gauges(self) -> Iterator[Metric]:
        label = ["worker"]
        by_worker = [((worker.worker_id,), worker) for worker in self._workers]
        for name, text, figure in (
            (
                "imagegen_worker_up",
                "Whether the worker sent a heartbeat recently.",
                lambda w: w.age_seconds < NOT_STALE_S,
            ),
            (
                "imagegen_comfyui_up",
                "Whether the worker's ComfyUI answers.",
                lambda w: w.comfyui_up and w.age_seconds < NOT_STALE_S,
            ),
            ("imagegen_vram_total_bytes", "Memory of the worker's device.", lambda w: w.vram_total_bytes),
            ("imagegen_vram_free_bytes", "Free memory of the worker's device.", lambda w: w.vram_free_bytes),
            ("imagegen_worker_jobs", "Jobs that the worker holds.", lambda w: len(w.running)),
            ("imagegen_worker_models_loaded", "Models that the worker has loaded.", lambda w: len(w.loaded_models)),
            ("imagegen_worker_start_time_seconds", "When the worker started, in Unix time.", lambda w: w.started_at),
        ):
            found = [(labels, figure(worker)) for labels, worker in by_worker]
            yield _gauge(name, text, [(labels, value) for labels, value in found if value is not None], label)
        reconnects = CounterMetricFamily(
            "imagegen_worker_reconnects", "Reconnections of the worker to NATS and to ComfyUI.", labels=label
        )
        redeliveries = CounterMetricFamily(
            "imagegen_worker_redeliveries",
            "Jobs that another worker, or an earlier process, had before.",
            labels=label,
        )
        for labels, worker in by_worker:
            reconnects.add_metric(labels, worker.reconnects)
            redeliveries.add_metric(labels, worker.redeliveries)
        yield reconnects
        yield redeliveries


class _View(Collector):
    """Gauges that are read when they are collected."""

    def __init__(self, view: Callable[[], Iterator[Metric]]) -> None:
        self._view = view

    def collect(self) -> Iterator[Metric]:
        return self._view()

    def describe(self) -> list[Metric]:
        return []


def _gauge(
    name: str, text: str, values: Iterable[tuple[tuple[str, ...], float]], labels: Iterable[str] = ()
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=list(labels))
    for found, value in values:
        family.add_metric(found, float(value))
    return family
