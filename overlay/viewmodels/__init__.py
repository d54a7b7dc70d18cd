"""What the overlay shows and what a person may do with it, as plain Python: no gi, no threads, no network."""
