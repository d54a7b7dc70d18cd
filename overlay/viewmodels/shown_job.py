"""What the large view shows: one image of a running or finished job, from a card or from the history."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bridge.contract import EXTENSIONS, IMAGE_FORMATS, MEDIA_TYPES, FileFormat, JobState, format_of
from overlay.translate import _
from overlay.viewmodels.file_names import suggested_name
from overlay.viewmodels.history import PastImage
from overlay.viewmodels.job_card import JobCard, Progress


@dataclass(frozen=True)
class ShownJob:
    """``data`` is the finished image, encoded; None until it has been downloaded."""

    key: str
    """Job id and index of the image, as in the history."""
    job_id: str
    prompt: str
    model: str | None
    seed: int | None
    settings: dict[str, Any]
    """The settings that reproduce this image."""
    progress: Progress
    running: bool = False
    cancelling: bool = False
    preview: bytes | None = None
    data: bytes | None = None
    image_format: FileFormat = "png"
    problem: str = ""

    @property
    def caption(self) -> str:
        """The line below the image."""
        seed = "" if self.seed is None else _("seed {seed}").format(seed=self.seed)
        return " · ".join(part for part in (self.prompt, self.model or "", seed) if part)

    @property
    def mime(self) -> str:
        """The media type of ``data``."""
        return MEDIA_TYPES[EXTENSIONS[self.image_format]]

    @property
    def is_image(self) -> bool:
        """Whether it can be shown, copied and varied. A video or another file can only be saved."""
        return self.image_format in IMAGE_FORMATS

    @property
    def file_name(self) -> str:
        """The suggested file name."""
        extension = EXTENSIONS[self.image_format]
        return suggested_name(self.prompt, self.model, self.seed, extension)


def from_card(card: JobCard, settings: dict[str, Any], index: int = 0) -> ShownJob:
    """Image ``index`` of a card."""
    data = card.images[index] if index < len(card.images) else None
    return ShownJob(
        key=f"{card.job_id}/{index}",
        job_id=card.job_id,
        prompt=card.prompt,
        model=card.model,
        seed=card.seed(index),
        settings=single(settings, card.seed(index)),
        progress=card.progress,
        running=card.running or (card.done and data is None and not card.error),
        cancelling=card.cancelling,
        preview=card.preview,
        data=data,
        image_format=format_at(card.state, index),
        problem=card.error or (card.progress.text if not card.running and not card.done else ""),
    )


def from_past(image: PastImage, data: bytes | None, settings: dict[str, Any], problem: str = "") -> ShownJob:
    """An image of the history, with its ``data`` once fetched, or the ``problem`` if that failed."""
    return ShownJob(
        key=image.key,
        job_id=image.job.job_id,
        prompt=image.prompt,
        model=image.job.model,
        seed=image.seed,
        settings=single(settings, image.seed),
        progress=Progress(_("Could not be fetched") if problem else _("Fetching")),
        running=data is None and not problem,
        data=data,
        image_format=format_at(image.job, image.index),
        problem=problem,
    )


def format_at(job: JobState | None, index: int) -> FileFormat:
    """The format of file ``index`` of a job, whose results may differ in kind."""
    if job is None:
        return "png"
    named = format_of(job.images[index].name) if index < len(job.images) else None
    return named or job.image_format or "png"


def single(settings: dict[str, Any], seed: int | None) -> dict[str, Any]:
    """The settings for one image of a batch: its own seed, and one image."""
    return {
        **settings,
        **({"seed": seed} if seed is not None else {}),
        **({"num_images": 1} if "num_images" in settings else {}),
    }
