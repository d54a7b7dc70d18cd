"""Past images, newest first, from the jobs that the service lists. Removing one can be undone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bridge.contract import IMAGE_FORMATS, JobKind, JobState, JobStatus
from overlay.viewmodels.signal import Signal


@dataclass(frozen=True)
class PastImage:
    """One image of one finished job."""

    job: JobState
    index: int

    @property
    def key(self) -> str:
        """Identifies the image: job id and index."""
        return f"{self.job.job_id}/{self.index}"

    @property
    def prompt(self) -> str:
        """The prompt, or the mode if there was none."""
        return str(self.job.parameters.get("prompt") or self.job.mode)

    @property
    def seed(self) -> int | None:
        """The seed of this image: image i of a job has seed + i."""
        seed = self.job.parameters.get("seed")
        return seed + self.index if isinstance(seed, int) else None


class History:
    """``hidden`` holds the keys of removed images. It is changed in place, so that the owner can save it."""

    def __init__(self, hidden: list[str]) -> None:
        self.changed = Signal[[]]()
        self._jobs: dict[str, JobState] = {}
        self._hidden = hidden

    def images(self) -> list[PastImage]:
        """The images to show, newest first."""
        jobs = sorted(self._jobs.values(), key=lambda job: job.finished_at or job.submitted_at, reverse=True)
        past = [PastImage(job, index) for job in jobs for index in range(len(job.images))]
        return [image for image in past if image.key not in self._hidden]

    def replace(self, jobs: Iterable[JobState]) -> None:
        """Take the list of the service. Removed images that the service no longer lists are forgotten too."""
        self._jobs = {job.job_id: job for job in jobs if shown(job)}
        self._hidden[:] = [key for key in self._hidden if key.partition("/")[0] in self._jobs]
        self.changed.emit()

    def add(self, job: JobState) -> None:
        """Add a job that has just ended."""
        if shown(job):
            self._jobs[job.job_id] = job
            self.changed.emit()

    def remove(self, image: PastImage) -> None:
        """Stop showing ``image``; `restore` undoes that."""
        if image.key not in self._hidden:
            self._hidden.append(image.key)
            self.changed.emit()

    def restore(self, image: PastImage) -> None:
        """Show a removed image again."""
        if image.key in self._hidden:
            self._hidden.remove(image.key)
            self.changed.emit()


def shown(job: JobState) -> bool:
    """Whether a job has images to show: other modes make videos, weights or tables."""
    made = job.kind is JobKind.GENERATE and job.status is JobStatus.DONE and bool(job.images)
    return made and job.image_format in (None, *IMAGE_FORMATS)
