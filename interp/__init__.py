"""The reference interpreter: what every operation means, in plain Python, and how results are compared with it."""
