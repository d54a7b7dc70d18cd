"""The desktop overlay: GTK 4 and libadwaita on top of the bridge's REST API.

``viewmodels/`` holds the state and the behaviour, without a display and without gi. ``ui/`` shows it. ``desktop/``
integrates it into each desktop: installation, global shortcut, stacking, notifications. All of them reach the service
through `bridge.client`, whose coroutines ``link.py`` runs beside GTK's main loop.
"""
