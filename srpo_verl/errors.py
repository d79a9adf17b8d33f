"""Errors that end a run with a message for the person who started it."""


class ConfigError(ValueError):
    """A configuration value that cannot work; the message names the key, the value and the remedy."""

    def __init__(self, key: str, value: object, remedy: str):
        super().__init__(f"{key}={value!r}: {remedy}")
        self.key, self.value, self.remedy = key, value, remedy
