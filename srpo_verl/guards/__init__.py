"""Signs that a training run is dying, from the metrics it logs. No torch, no veRL: the trainer and the report use it.

for alarm in review((step, metrics) for step, metrics in log):
    print(alarm)
"""

from srpo_verl.guards.history import History
from srpo_verl.guards.rules import RULES, Settings
from srpo_verl.guards.watch import LEVELS, Alarm, Watch, review

__all__ = ["LEVELS", "RULES", "Alarm", "History", "Settings", "Watch", "review"]
