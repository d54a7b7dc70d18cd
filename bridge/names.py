"""The names that the service uses on a NATS server: subjects, streams and buckets, all below one prefix."""

from __future__ import annotations

import re
from dataclasses import dataclass

DEFAULT_PREFIX = "ai.vision.imagegen"
_TOKEN = re.compile(r"[A-Za-z0-9]+([_-][A-Za-z0-9]+)*")


@dataclass(frozen=True)
class Names:
    """The subjects below one prefix, and the streams and buckets that go with it.

    Installations with different prefixes can share a cluster, and an account, without seeing each other.
    """

    prefix: str = DEFAULT_PREFIX

    def __post_init__(self) -> None:
        if bad := [token for token in self.prefix.split(".") if not _TOKEN.fullmatch(token)]:
            raise ValueError(
                f"subject prefix {self.prefix!r}: {bad[0]!r} is not a word of letters, digits, single - and _; "
                f"an example is {DEFAULT_PREFIX}"
            )

    @property
    def request(self) -> str:
        return f"{self.prefix}.request"

    @property
    def submit(self) -> str:
        """Callers queue a job here without waiting for it."""
        return f"{self.prefix}.submit"

    @property
    def state(self) -> str:
        """Callers ask for the current state of a job at `<this>.<job id>`."""
        return f"{self.prefix}.state"

    @property
    def result(self) -> str:
        return f"{self.prefix}.result"

    @property
    def model_info(self) -> str:
        return f"{self.prefix}.model_info"

    @property
    def plan(self) -> str:
        return f"{self.prefix}.plan"

    @property
    def options(self) -> str:
        """Gateways ask here for the options of node widgets."""
        return f"{self.prefix}.options"

    @property
    def jobs(self) -> str:
        return f"{self.prefix}.jobs"

    @property
    def events(self) -> str:
        return f"{self.prefix}.events"

    @property
    def cancel(self) -> str:
        """Callers cancel a job here; gateways pass the request to the workers at `<this>.<job id>`."""
        return f"{self.prefix}.cancel"

    @property
    def unload(self) -> str:
        """Callers free device memory here."""
        return f"{self.prefix}.unload"

    @property
    def queue(self) -> str:
        """Callers ask for the state of the queue here, and change it at `<this>.pause`, `.resume` and `.cancel`."""
        return f"{self.prefix}.queue"

    @property
    def queue_changed(self) -> str:
        """Whoever pauses or resumes the queue says so here."""
        return f"{self.prefix}.queue_changed"

    @property
    def workers(self) -> str:
        return f"{self.prefix}.workers"

    @property
    def watch(self) -> str:
        """Gateways announce here that someone wants the previews of a job."""
        return f"{self.prefix}.watch"

    @property
    def callbacks(self) -> str:
        """The queue of ended jobs whose caller wants a webhook."""
        return f"{self.prefix}.callbacks"

    @property
    def callbacks_stream(self) -> str:
        return "IMAGEGEN_CALLBACKS" if self.prefix == DEFAULT_PREFIX else f"{self._slug}__callbacks".upper()

    @property
    def callbacks_consumer(self) -> str:
        return "imagegen-callbacks"

    @property
    def consumer(self) -> str:
        return "imagegen-workers"

    @property
    def stream(self) -> str:
        return "IMAGEGEN_JOBS" if self.prefix == DEFAULT_PREFIX else f"{self._slug}__jobs".upper()

    @property
    def states(self) -> str:
        """The key-value bucket of job states."""
        return f"{self._slug}-jobs"

    @property
    def control(self) -> str:
        """The key-value bucket of what holds for all workers: the pause."""
        return f"{self._slug}-control"

    @property
    def images(self) -> str:
        """The object store of the images."""
        return f"{self._slug}-images"

    @property
    def inputs(self) -> str:
        """The object store of the images that requests bring."""
        return f"{self._slug}-inputs"

    @property
    def idempotency(self) -> str:
        """The key-value bucket of the Idempotency-Keys that were used."""
        return f"{self._slug}-idempotency"

    @property
    def probe_jobs(self) -> str:
        """A subject of the queue of jobs that no worker reads: a write to it shows that the queue is stored."""
        return f"{self.prefix}.probe.jobs"

    @property
    def probe_callbacks(self) -> str:
        """The same for the queue of webhooks."""
        return f"{self.prefix}.probe.callbacks"

    @property
    def probe_key(self) -> str:
        """The same for buckets: a key that is no job's id and no claim's."""
        return "=probe"

    @property
    def _slug(self) -> str:
        # Names of streams and buckets may hold no dot. No token holds "__", so two prefixes never make one slug.
        return "imagegen" if self.prefix == DEFAULT_PREFIX else self.prefix.replace(".", "__")
