"""Tables and figures of the paper, redrawn from the logs of one's own runs: ``python -m srpo_verl.report``."""
