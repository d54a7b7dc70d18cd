"""`imagegen doctor`: what is installed, what runs, what is damaged, and the repair of what can be repaired."""
