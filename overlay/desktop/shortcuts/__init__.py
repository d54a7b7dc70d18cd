"""The global shortcut: which means this desktop offers, bound and undone. One module a means.

The desktops that have a list of custom key bindings get an entry that runs the toggle command; it works whether the
overlay runs or not. Elsewhere the running overlay itself holds the key: through the GlobalShortcuts portal, or by an
X11 grab.
"""
