"""The desktop overlay: GTK4 and libadwaita on top of the bridge's HTTP interface.

``viewmodels/`` holds everything that can be said without a display and imports no gi; ``ui/`` shows it; ``desktop/``
knows the desktops (installation, global shortcut, keeping above). ``link.py`` is the one way to the bridge.
"""
