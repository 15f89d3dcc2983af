"""What every test starts from."""

from hypothesis import HealthCheck, settings

# How long an example takes is the machine's doing: beside other programs, most take too long.
settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("untimed")
