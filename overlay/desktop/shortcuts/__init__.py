"""Binds and unbinds the global shortcut. One module for each means that a desktop offers.

Desktops with a list of custom key bindings get an entry that runs the toggle command, which works whether or not the
overlay is running. Elsewhere the running overlay holds the key, through the GlobalShortcuts portal or an X11 grab.
"""
