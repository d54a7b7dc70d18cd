"""Everything that differs between desktops: installation, global shortcut, staying on top, notifications."""
