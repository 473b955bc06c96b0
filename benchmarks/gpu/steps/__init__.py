"""The steps of a run. Each has a ``LIMIT_S`` of its own and ``run(context, deadline)``."""
