"""For all tests."""

from hypothesis import settings

settings.register_profile("no deadline", deadline=None)  # machines are noisy, and no test here is about time
settings.load_profile("no deadline")
