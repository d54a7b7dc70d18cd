"""Reports jobs that ended while no window was in front."""

from __future__ import annotations

from gi.repository import Gio, GLib

from overlay.translate import _
from overlay.viewmodels.job_card import JobCard


class Notifications:
    """Desktop notifications. The desktop shows and keeps them, and calls our actions."""

    def __init__(self, application: Gio.Application) -> None:
        self._application = application

    def say(self, text: str) -> None:
        """Report what a visible window would show as a toast, such as where an image was saved."""
        self._application.send_notification("said", Gio.Notification.new(text))

    def job_ended(self, card: JobCard) -> None:
        """Report that the image is ready, or why the job failed."""
        job = GLib.Variant("s", card.job_id)
        if card.done:
            note = Gio.Notification.new(_("Your image is ready"))
            note.set_body(card.prompt)
            note.add_button_with_target(_("Save"), "app.save-job", job)
        elif card.error:
            note = Gio.Notification.new(_("The image could not be generated"))
            note.set_body(card.error)
            note.set_priority(Gio.NotificationPriority.HIGH)
        else:
            return  # cancelled: whoever did that knows
        note.add_button_with_target(_("Open"), "app.show-job", job)
        note.set_default_action_and_target("app.show-job", job)
        self._application.send_notification(card.job_id, note)
