"""What a run would stumble over after minutes inside Ray: model, data and GPUs, looked at before Ray starts.

`run.examine` returns findings. The Hydra callback of every named configuration stops at an error (`start.py`);
`python -m srpo_verl check` prints the whole report and starts nothing. One module per subject; the functions return
findings and print nothing.
"""

VARIABLE = "SRPO_PREFLIGHT"
"""Environment variable; set to "off", a run is not looked at before Ray starts."""
