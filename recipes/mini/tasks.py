"""The tasks of the suite by name."""

from recipes.mini.chain_sum import ChainSum
from recipes.mini.desk import Desk
from recipes.mini.rewriting import Rewriting
from recipes.mini.sums import Sums3, Sums4
from recipes.mini.task import Task

TASKS: dict[str, Task] = {task.name: task for task in (Sums3(), Sums4(), ChainSum(), Rewriting(), Desk())}
