"""Entry point of the group `verl.plugins`: importing this module makes the plugin known to veRL.

veRL loads it at the end of `import verl`, in the driver and in every Ray process, and logs a failure at DEBUG level
only. `check_installation` is what notices: the configurations of this package call it before Ray starts, and
`python -m srpo_verl.doctor` does for anyone who asks.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, entry_points, version

SUPPORTED_VERL = ("0.9.1",)
"""Releases of veRL whose internals the adapters were written against and tested with."""


class PluginError(RuntimeError):
    """The plugin cannot work in this environment; the message says what to do."""


def register() -> None:
    """Register everything in veRL's registries. Idempotent."""
    # First: one of its shims has to be in place before veRL's workers are imported.
    from srpo_verl import cpu

    cpu.register()

    from srpo_verl import verl_ext

    verl_ext.register()


def check_installation() -> None:
    """Raise PluginError unless veRL is a supported release and every registration is in place."""
    try:
        found = version("verl")
    except PackageNotFoundError:
        raise PluginError(f"veRL is not installed; pip install 'verl[verl-core]=={SUPPORTED_VERL[-1]}'") from None
    if found not in SUPPORTED_VERL:
        raise PluginError(
            f"veRL {found} is installed, supported: {', '.join(SUPPORTED_VERL)}; "
            f"pip install 'verl[verl-core]=={SUPPORTED_VERL[-1]}'"
        )
    if not any(point.value == __name__ for point in entry_points(group="verl.plugins")):
        raise PluginError(
            "srpo_verl is importable but not installed, so Ray's processes would not load it; pip install srpo-verl"
        )
    missing = missing_registrations()
    if missing:
        raise PluginError(
            f"not registered in veRL: {', '.join(missing)}. Is VERL_USE_EXTERNAL_PLUGINS set to something that leaves "
            "srpo_verl out? `python -m srpo_verl.doctor` shows the import error if there is one."
        )


def missing_registrations() -> list[str]:
    """Names of what veRL's registries should hold from this plugin and do not."""
    import verl  # noqa: F401  (loads the plugin, as in every process)

    from srpo_verl import verl_ext

    return verl_ext.missing_registrations()


register()
