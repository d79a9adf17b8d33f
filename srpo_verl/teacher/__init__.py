"""The self-teacher: what it is shown (demonstration, prompt) and what its weights are (EMA). Imports no veRL."""
