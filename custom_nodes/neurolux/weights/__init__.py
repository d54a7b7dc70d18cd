"""Weight files: where they come from, what their headers say, how they are opened and stored in fewer bits."""
