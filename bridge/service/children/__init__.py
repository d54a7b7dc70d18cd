"""The child processes of the service, kept alive and watched."""
