"""What the service's things are called on a NATS server: subjects, streams and buckets below one prefix."""

from __future__ import annotations

import re
from dataclasses import dataclass

DEFAULT_PREFIX = "ai.vision.imagegen"
_TOKEN = re.compile(r"[A-Za-z0-9]+([_-][A-Za-z0-9]+)*")


@dataclass(frozen=True)
class Names:
    """The subjects below one prefix, and the stream and buckets that go with it.

    Installations with different prefixes share a cluster (and an account) without hearing of each other.
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
        """Where a job is queued without waiting for it."""
        return f"{self.prefix}.submit"

    @property
    def state(self) -> str:
        """`<this>.<job id>`: where the present state of a job is asked for."""
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
        """Where a gateway asks what the widgets of nodes offer."""
        return f"{self.prefix}.options"

    @property
    def jobs(self) -> str:
        return f"{self.prefix}.jobs"

    @property
    def events(self) -> str:
        return f"{self.prefix}.events"

    @property
    def cancel(self) -> str:
        """Where a caller asks for it; `<this>.<job id>` is what gateways say to the workers."""
        return f"{self.prefix}.cancel"

    @property
    def workers(self) -> str:
        return f"{self.prefix}.workers"

    @property
    def watch(self) -> str:
        """Where a gateway says that somebody wants to see the previews of a job."""
        return f"{self.prefix}.watch"

    @property
    def callbacks(self) -> str:
        """Where jobs lie that have ended and whose caller is to be called back."""
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
        """The key-value bucket of the jobs' states."""
        return f"{self._slug}-jobs"

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
    def _slug(self) -> str:
        # Names of streams and buckets may hold no dot. No token holds "__", so two prefixes never make one slug.
        return "imagegen" if self.prefix == DEFAULT_PREFIX else self.prefix.replace(".", "__")
