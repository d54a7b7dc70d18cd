"""The service on one machine: the supervisor of `imagegen up`, its child processes, and its status."""
