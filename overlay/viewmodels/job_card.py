"""One job as the overlay shows it: its phase, its progress and its result."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from bridge.contract import JobEvent, JobProgress, JobState, JobStatus, duration_text, size_text
from overlay.translate import _, plural
from overlay.viewmodels.signal import Signal

SHORTEST_LEFT_S = 0.5
"""A shorter remaining time is not shown."""


@dataclass(frozen=True)
class Progress:
    """The progress of a job. ``fraction`` is None while it is unknown; the bar pulses then."""

    text: str
    fraction: float | None = None
    seconds_left: float | None = None

    @property
    def detail(self) -> str:
        """The text, with the remaining time if that is known."""
        if self.seconds_left is None or self.seconds_left < SHORTEST_LEFT_S:
            return self.text
        return _("{text}, {left} left").format(text=self.text, left=duration_text(self.seconds_left))


@dataclass
class JobCard:
    """A job from the click on Generate to its images. ``changed`` is emitted after every change.

    The id is chosen here, before the request is sent. A request whose answer was lost can then be sent again: the
    service runs each id once.
    """

    request: dict[str, Any]
    job_id: str = field(default_factory=lambda: str(uuid4()))
    status: JobStatus | None = None
    """None until the service has accepted the job."""
    state: JobState | None = None
    progress: Progress = field(default_factory=lambda: Progress(_("Sending")))
    preview: bytes | None = None
    images: list[bytes] = field(default_factory=list)
    error: str = ""
    cancelling: bool = False
    changed: Signal[[]] = field(default_factory=Signal)

    @classmethod
    def of(cls, state: JobState) -> JobCard:
        """The card of a job that the service already knows."""
        card = cls(request={**state.parameters, "mode": state.mode, "model": state.model}, job_id=state.job_id)
        card.take_state(state)
        return card

    @property
    def prompt(self) -> str:
        """The prompt, or the mode if there is none."""
        text = self.state.parameters.get("prompt") if self.state else None
        return str(text or self.request.get("prompt") or self.request.get("mode") or "")

    @property
    def model(self) -> str | None:
        """The model that generates the image, once it is known."""
        return self.state.model if self.state else self.request.get("model")

    def seed(self, index: int = 0) -> int | None:
        """The seed of image ``index``."""
        seed = self.state.parameters.get("seed") if self.state else self.request.get("seed")
        return seed + index if isinstance(seed, int) else None

    @property
    def running(self) -> bool:
        """Whether the job may still end in an image."""
        return not self.error and (self.status is None or not self.status.final)

    @property
    def done(self) -> bool:
        """Whether its images exist; they may not be downloaded yet."""
        return self.status is JobStatus.DONE

    def take_state(self, state: JobState) -> None:
        """Take the state that the service reports."""
        self.state = state
        self.status = state.status
        match state.status:
            case JobStatus.QUEUED:
                self.progress = queued_progress(state)
            case JobStatus.RUNNING:
                if state.progress is not None and state.progress.phase is not None:
                    self.progress = running_progress(state.progress)
                elif self.progress.fraction is None:
                    self.progress = Progress(_("Starting"))
            case JobStatus.DONE:
                self.progress = Progress(_("Done"), 1.0)
            case JobStatus.CANCELLED:
                self.progress = Progress(_("Cancelled"))
            case JobStatus.FAILED:
                self.progress = Progress(_("Failed"))
                self.error = state.error.message if state.error else _("The job failed without giving a reason.")
        self.changed.emit()

    def take_event(self, event: JobEvent) -> None:
        """Take one event of the job."""
        if event.state is not None:
            self.take_state(event.state)
        match event.type:
            case "queued":
                self.progress = queued_progress(event)
            case "started":
                self.status = JobStatus.RUNNING
                self.progress = Progress(_("Starting"))
            case "progress":
                self.status = JobStatus.RUNNING
                self.progress = running_progress(event)
            case "preview" if event.image_b64:
                self.preview = base64.b64decode(event.image_b64)
        self.changed.emit()

    def take_images(self, images: list[bytes]) -> None:
        """Take the finished images, encoded."""
        self.images = images
        self.preview = None
        self.changed.emit()

    def fail(self, message: str) -> None:
        """The service refused the job, or its result cannot be read."""
        self.error = message
        self.progress = Progress(_("Failed"))
        self.changed.emit()

    def lose_contact(self, message: str) -> None:
        """The service does not answer; the job may still be running."""
        self.progress = Progress(message)
        self.changed.emit()


def queued_progress(event: JobEvent | JobState) -> Progress:
    """The progress of a waiting job: its place in the queue."""
    position, wait = event.position, event.wait_seconds
    if not position:
        return Progress(_("Waiting"), seconds_left=wait)
    ahead = plural("Waiting, {count} job ahead", "Waiting, {count} jobs ahead", position).format(count=position)
    return Progress(ahead, seconds_left=wait)


def running_progress(event: JobEvent | JobProgress) -> Progress:
    """The progress of a running job: download, load, sample, or whatever a node counts."""
    done, total, left = event.done_bytes, event.total_bytes, event.seconds_left
    if done is not None and total:
        rate = event.bytes_per_second
        doing = _("Downloading") if event.phase == "download" else _("Loading")
        text = _("{doing} {done} of {total}").format(doing=doing, done=size_text(done), total=size_text(total))
        if rate:
            text = _("{text}, {rate}/s").format(text=text, rate=size_text(rate))
            left = left if left is not None else (total - done) / rate
        return Progress(text, done / total, left)
    fraction = (event.value or 0) / event.maximum if event.maximum else None
    if event.phase and event.phase.lower() == "sample" and event.maximum:
        step = _("Step {done} of {total}").format(done=int(event.value or 0), total=int(event.maximum))
        return Progress(step, fraction, left)
    return Progress(event.phase or _("Running"), fraction, left)
