"""Errors that end a run with a message for the person who started it."""


class ConfigError(ValueError):
    """A configuration value that cannot work; the message names the key, the value and the remedy."""

    def __init__(self, key: str, value: object, remedy: str):
        super().__init__(f"{key}={value!r}: {remedy}")
        self.key, self.value, self.remedy = key, value, remedy

    def __reduce__(self) -> tuple:
        """Pickled with its own arguments: Ray carries it from its processes to the one that prints it."""
        return type(self), (self.key, self.value, self.remedy)


class RunStopped(Exception):
    """A run that ended itself before its last step, with a checkpoint; the message says why."""

    def __init__(self, reason: str, status: int):
        super().__init__(reason)
        self.reason, self.status = reason, status
        """Exit status of the run's process."""

    def __reduce__(self) -> tuple:
        """As ConfigError's."""
        return type(self), (self.reason, self.status)
