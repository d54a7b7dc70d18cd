"""The service on one machine: the supervisor of `imagegen up`, its children, and what other commands see of it."""
