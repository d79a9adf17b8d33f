"""What the guards need to know of a run's configuration: for the trainer, and for a report of its log."""

from __future__ import annotations

from srpo_verl.algos.routings import effects_of
from srpo_verl.config.schema import SrpoConfig
from srpo_verl.guards import Settings


def guard_settings(srpo: SrpoConfig) -> Settings:
    """What the rules need to know of the configuration."""
    return Settings(
        levels=srpo.guards.levels,
        length_growth=srpo.guards.length_growth,
        length_shrink=srpo.guards.length_shrink,
        entropy_floor=srpo.guards.entropy_floor,
        success_threshold=srpo.success_threshold,
        failed_only=effects_of(srpo.routing).distils_failed_only,
        teacher_kind=srpo.teacher.kind if srpo.uses_teacher else None,
    )
