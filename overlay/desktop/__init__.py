"""What differs from desktop to desktop: installation, the global shortcut, staying above, notifications."""
