"""The overlay's one session with the bridge: connection, models, modes, jobs and history, and what a person does.

It is the only view-model that talks to the bridge; it does so through ``link`` and hears back on the showing thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from bridge.client import AsyncImageGenClient, ClientError, ServiceUnreachable
from bridge.contract.messages import JobEvent, JobState, JobStatus, ModelInfoResponse
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
"""Between two tries to hear of a job again after the bridge has gone."""


class Session:
    """What the overlay knows and does."""

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

    # -- the bridge comes and goes -------------------------------------------------------------------------------

    def look(self, done: Callable[[], object] | None = None) -> None:
        """Ask the bridge whether it is ready; read models, modes and history when it has just become so."""

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
        """Read models, modes and history anew."""
        self._link.run(self._read_all(), self._take_all, self._missed)

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

    def _missed(self, failure: ClientError) -> None:
        self.connection.not_ready(reason_of(failure))

    def choose_mode(self, name: str) -> None:
        """Show the form of another mode, with what was last chosen in it."""
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
        """Send the form; None while something in it is wrong."""
        form = self.form
        if form is None or form.problems():
            return None
        self.remember()
        self.prompts.add(form.prompt)
        return self.send(form.request())

    def send(self, request: dict[str, Any]) -> JobCard:
        """Send a request as a job of its own and follow it."""
        card = JobCard(request=dict(request))
        self._add(card)
        return card

    def again(self, card: JobCard) -> JobCard:
        """The same settings with a new seed."""
        request = self.settings_of(card)
        request.pop("seed", None)
        return self.send(request)

    def settings_of(self, card: JobCard) -> dict[str, Any]:
        """What would make the image of ``card`` once more."""
        if card.state is None:
            return dict(card.request)
        return {
            **{name: value for name, value in card.state.parameters.items() if value is not None},
            "mode": card.state.mode,
            **({"model": card.state.model} if card.state.model else {}),
        }

    def cancel(self, card: JobCard) -> None:
        """Cancel a job; its card shows what became of it."""
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
        """Take an ended card off the screen."""
        if card in self.cards and not card.running:
            self.cards.remove(card)

    def delete(self, key: str) -> Callable[[], None] | None:
        """Take image ``key`` out of what is shown; returns what takes it back (None: there is nothing to take out).

        The card of a job that failed or was cancelled goes as a whole; a running job has to be cancelled first.
        """
        card = next((card for card in self.cards if key.startswith(card.job_id)), None)
        image = next((past for past in self.history.images() if past.key == key), None)
        if image is None:
            return self._take_card_away(card)
        if card is not None:
            self.dismiss(card)
        self.history.remove(image)
        self.preferences.save()

        def undo() -> None:
            self.history.restore(image)
            self.preferences.save()

        return undo

    def _take_card_away(self, card: JobCard | None) -> Callable[[], None] | None:
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
        """A mode's name for people."""
        return str(self._schemas[mode].get("title") or mode)

    def fetch_image(
        self, job_id: str, index: int, done: Callable[[bytes], object], failed: Callable[[str], object]
    ) -> None:
        """Image ``index`` of a job, for a thumbnail or a large view; ``failed`` is told why it cannot be had."""
        self._link.run(self._client.job_image(job_id, index), done, lambda failure: failed(reason_of(failure)))

    def fetch_first(
        self, job_id: str, done: Callable[[PastImage, bytes], object], failed: Callable[[str], object]
    ) -> None:
        """The first image of a job, whether or not the history shows it; ``failed`` is told why there is none."""

        async def fetch() -> tuple[PastImage, bytes]:
            job = await self._client.job(job_id)
            return PastImage(job, 0), await self._client.job_image(job_id, 0)

        self._link.run(fetch(), lambda found: done(*found), lambda failure: failed(reason_of(failure)))

    def remember(self) -> None:
        """Write what was chosen, so that the next start shows it."""
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
        """Send the job, hear of it to its end, fetch its images; outlasts a bridge that goes away and comes back.

        A stream begins with the present state, so nothing is missed by listening after sending. An answer that was
        lost leads to the same request under the same id: the bridge takes it once.
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

        # Without patience: the card says that the service is away, and we try again.
        return await self._client.wait(card.job_id, on_event=heard, patience_s=0)

    async def _finish(self, card: JobCard, state: JobState) -> None:
        if state.status is JobStatus.DONE:
            images = [await self._client.job_image(card.job_id, index) for index in range(len(state.images))]
            self._link.deliver(card.take_images, images)
            self._link.deliver(self.history.add, state)
        self._link.deliver(self.job_ended.emit, card)


def reason_of(failure: ClientError) -> str:
    """What the user is shown of ``failure``."""
    if isinstance(failure, ServiceUnreachable):
        return _("Nothing answers at {url}").format(url=failure.url)
    return str(failure)


def only_shown(schema: dict[str, Any], parameters: Sequence[str]) -> dict[str, Any]:
    """The schema with what a person fills in: the graph's parameters, not what a program tells the service besides."""
    shown = {*parameters, "output_format"}
    properties = {name: value for name, value in schema["properties"].items() if name in shown}
    return {**schema, "properties": properties}
