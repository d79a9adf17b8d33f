"""Property tests draw the same examples in every run, and have no time limit for one: that is the machine's affair."""

from hypothesis import settings

settings.register_profile("srpo_verl", deadline=None, derandomize=True)
settings.load_profile("srpo_verl")
