"""What holds for every test."""

from hypothesis import settings

settings.register_profile("millstream", deadline=None)  # how long an example takes says nothing on a busy machine
settings.load_profile("millstream")
