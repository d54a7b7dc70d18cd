"""The sub-commands of `imagegen`. Each module adds its parsers; a command returns its exit code."""
