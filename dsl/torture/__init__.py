"""``millstream torture``: a job killed at random again and again, and its output compared with an undisturbed run's."""
