"""The session with the service: connection, models, modes, jobs and history, and the actions of the user.

This is the only view-model that reaches the service. It does so through ``link`` and gets every result on the windows'
thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from bridge.client import AsyncImageGenClient, ClientError, ServiceUnreachable
from bridge.contract import JobEvent, JobState, JobStatus, ModelInfoResponse
from overlay.link import Link
from overlay.translate import _
from overlay.viewmodels.connection import Connection
from overlay.viewmodels.form import GenerateForm
from overlay.viewmodels.history import History, PastImage
from overlay.viewmodels.job_card import JobCard
from overlay.viewmodels.preferences import Preferences
from overlay.viewmodels.prompt_history import PromptHistory
from overlay.viewmodels.signal import Signal

LISTED_JOBS = 100
"""How far back the history of images goes."""
STREAM_RETRY_S = 1.0
"""Between two attempts to follow a job again after the service went away."""


class Session:
    """The state of the overlay, and the actions on it."""

    def __init__(self, client: AsyncImageGenClient, link: Link, preferences: Preferences) -> None:
        self.connection = Connection()
        self.preferences = preferences
        self.prompts = PromptHistory(preferences.prompts)
        self.history = History(preferences.hidden_jobs)
        self.cards: list[JobCard] = []
        self.modes: list[str] = []
        self.form: GenerateForm | None = None
        self.form_replaced = Signal[[]]()
        self.card_added = Signal[[JobCard]]()
        self.job_ended = Signal[[JobCard]]()
        self._client = client
        self._link = link
        self._info: ModelInfoResponse | None = None
        self._schemas: dict[str, dict[str, Any]] = {}
        self._following: dict[str, Future[None]] = {}

    # -- the service comes and goes ------------------------------------------------------------------------------

    def check_service(self, done: Callable[[], object] | None = None) -> None:
        """Ask the service whether it is ready, and read models, modes and history when it has just become ready."""

        def answered(_: object) -> None:
            was_ready = self.connection.ready
            self.connection.answered()
            if not was_ready:
                self.refresh()
            if done is not None:
                done()

        def failed(failure: ClientError) -> None:
            if failure.status == 0:
                self.connection.unreachable(reason_of(failure))
            elif failure.status in (401, 403):
                self.connection.refused(reason_of(failure))
            else:
                self.connection.not_ready(reason_of(failure))
            if done is not None:
                done()

        self._link.run(self._client.check_ready(), answered, failed)

    def refresh(self) -> None:
        """Read models, modes and history again."""
        self._link.run(self._read_all(), self._take_all, self._refresh_failed)

    async def _read_all(self) -> tuple[ModelInfoResponse, dict[str, dict[str, Any]], list[JobState]]:
        info = await self._client.model_info()
        schemas = {}
        for mode in (await self._client.modes()).details:
            if mode.error is None:
                schemas[mode.name] = only_shown(await self._client.mode(mode.name), mode.parameters)
        return info, schemas, await self._newest_jobs()

    async def _newest_jobs(self) -> list[JobState]:
        found: list[JobState] = []
        async for job in self._client.jobs(limit=LISTED_JOBS):
            found.append(job)
            if len(found) == LISTED_JOBS:
                break
        return found

    def _take_all(self, read: tuple[ModelInfoResponse, dict[str, dict[str, Any]], list[JobState]]) -> None:
        self._info, self._schemas, jobs = read
        self.modes = list(self._schemas)
        self.history.replace(jobs)
        known = {card.job_id for card in self.cards}
        for job in jobs:
            if not job.status.final and job.job_id not in known:
                self._add(JobCard.of(job))
        if self.form is None or self.form.mode not in self._schemas:
            self.choose_mode(self.preferences.mode)
        else:
            self.form.update_models(self._info.models, self._info.default_model)

    def _refresh_failed(self, failure: ClientError) -> None:
        self.connection.not_ready(reason_of(failure))

    def choose_mode(self, name: str) -> None:
        """Show the form of another mode, with its last values."""
        if self._info is None or not self._schemas:
            return
        if name not in self._schemas:
            name = next(iter(self._schemas))
        prompt = self.form.prompt if self.form and self.form.mode != name else ""
        remembered = self.preferences.values.get(name, {})
        self.form = GenerateForm(
            name,
            self._schemas[name],
            self._info.models,
            self._info.default_model,
            remembered,
            seed_locked=self.preferences.seed_locked,
        )
        if prompt and "prompt" in self._schemas[name]["properties"]:
            self.form.set("prompt", prompt)
        self.preferences.mode = name
        self.form_replaced.emit()

    # -- jobs -------------------------------------------------------------------------------------------------------

    def generate(self) -> JobCard | None:
        """Send the form. Returns None if a field has a problem."""
        form = self.form
        if form is None or form.problems():
            return None
        self.remember()
        self.prompts.add(form.prompt)
        return self.send(form.request())

    def send(self, request: dict[str, Any]) -> JobCard:
        """Send a request as a new job and follow it."""
        card = JobCard(request=dict(request))
        self._add(card)
        return card

    def again(self, card: JobCard) -> JobCard:
        """The same settings with a new seed."""
        request = self.settings_of(card)
        request.pop("seed", None)
        return self.send(request)

    def settings_of(self, card: JobCard) -> dict[str, Any]:
        """The settings that reproduce the image of ``card``."""
        if card.state is None:
            return dict(card.request)
        return {
            **{name: value for name, value in card.state.parameters.items() if value is not None},
            "mode": card.state.mode,
            **({"model": card.state.model} if card.state.model else {}),
        }

    def cancel(self, card: JobCard) -> None:
        """Cancel a job. Its card shows the result."""
        card.cancelling = True
        card.changed.emit()

        def failed(failure: ClientError) -> None:
            card.cancelling = False
            if failure.status == 404:  # It was never accepted, so there is nothing left to stop.
                card.fail(_("Cancelled before it was accepted"))
            else:
                card.lose_contact(reason_of(failure))

        self._link.run(self._client.cancel(card.job_id), card.take_state, failed)

    def dismiss(self, card: JobCard) -> None:
        """Remove the card of a job that has ended."""
        if card in self.cards and not card.running:
            self.cards.remove(card)

    def delete(self, key: str) -> Callable[[], None] | None:
        """Remove image ``key`` from the history. Returns a function that undoes this, or None if nothing was removed.

        The card of a job that failed or was cancelled is removed as a whole. A running job must be cancelled first.
        """
        card = next((card for card in self.cards if key.startswith(card.job_id)), None)
        image = next((past for past in self.history.images() if past.key == key), None)
        if image is None:
            return self._remove_card(card)
        if card is not None:
            self.dismiss(card)
        self.history.remove(image)
        self.preferences.save()

        def undo() -> None:
            self.history.restore(image)
            self.preferences.save()

        return undo

    def _remove_card(self, card: JobCard | None) -> Callable[[], None] | None:
        if card is None or card.running or card.done:
            return None
        place = self.cards.index(card)
        self.dismiss(card)
        self.history.changed.emit()

        def undo() -> None:
            self.cards.insert(min(place, len(self.cards)), card)
            self.history.changed.emit()

        return undo

    def title_of(self, mode: str) -> str:
        """The display name of a mode."""
        return str(self._schemas[mode].get("title") or mode)

    def fetch_image(
        self, job_id: str, index: int, done: Callable[[bytes], object], failed: Callable[[str], object]
    ) -> None:
        """Fetch image ``index`` of a job. ``failed`` gets the reason if it is not available."""
        self._link.run(self._client.job_image(job_id, index), done, lambda failure: failed(reason_of(failure)))

    def fetch_first(
        self, job_id: str, done: Callable[[PastImage, bytes], object], failed: Callable[[str], object]
    ) -> None:
        """Fetch the first image of a job, even if the history does not show it. ``failed`` gets the reason."""

        async def fetch() -> tuple[PastImage, bytes]:
            job = await self._client.job(job_id)
            return PastImage(job, 0), await self._client.job_image(job_id, 0)

        self._link.run(fetch(), lambda found: done(*found), lambda failure: failed(reason_of(failure)))

    def remember(self) -> None:
        """Save the choices of the user for the next start."""
        if self.form is not None:
            self.preferences.values[self.form.mode] = self.form.to_remember()
            self.preferences.seed_locked = self.form.seed_locked
        self.preferences.save()

    def _add(self, card: JobCard) -> None:
        self.cards.append(card)
        self.card_added.emit(card)
        self._following[card.job_id] = self._link.run(
            self._follow(card), failed=lambda failure: card.fail(reason_of(failure))
        )

    async def _follow(self, card: JobCard) -> None:
        """Send the job, follow it to its end and fetch its images, even if the service goes away and comes back.

        An event stream starts with the present state, so nothing is missed by opening it after sending. If the answer
        was lost, the same request is sent again under the same id, which the service runs once.
        """
        accepted = card.state is not None
        while True:
            try:
                if not accepted:
                    state = await self._client.submit(**{**card.request, "job_id": card.job_id})
                    accepted = True
                    self._link.deliver(card.take_state, state)
                await self._finish(card, await self._listen(card))
                return
            except ClientError as failure:
                if not failure.temporary:
                    self._link.deliver(card.fail, reason_of(failure))
                    self._link.deliver(self.job_ended.emit, card)
                    return
                self._link.deliver(card.lose_contact, _("Waiting for the image service"))
            await asyncio.sleep(STREAM_RETRY_S)

    async def _listen(self, card: JobCard) -> JobState:
        def heard(event: JobEvent) -> None:
            self._link.deliver(card.take_event, event)

        # Without patience: the card then shows that the service is away, and the loop above tries again.
        return await self._client.wait(card.job_id, on_event=heard, patience_s=0)

    async def _finish(self, card: JobCard, state: JobState) -> None:
        if state.status is JobStatus.DONE:
            images = [await self._client.job_image(card.job_id, index) for index in range(len(state.images))]
            self._link.deliver(card.take_images, images)
            self._link.deliver(self.history.add, state)
        self._link.deliver(self.job_ended.emit, card)


def reason_of(failure: ClientError) -> str:
    """The text for the user about ``failure``."""
    if isinstance(failure, ServiceUnreachable):
        return _("Nothing answers at {url}").format(url=failure.url)
    return str(failure)


def only_shown(schema: dict[str, Any], parameters: Sequence[str]) -> dict[str, Any]:
    """The schema with only the fields that a user fills in: the parameters of the graph and the output format."""
    shown = {*parameters, "output_format"}
    properties = {name: value for name, value in schema["properties"].items() if name in shown}
    return {**schema, "properties": properties}
