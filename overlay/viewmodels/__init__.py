"""The state that the overlay shows, and what the user can do with it, as plain Python without gi."""
