"""The self-teacher inside the worker: its weights in FSDP, the pass that scores with it, credit by it."""
