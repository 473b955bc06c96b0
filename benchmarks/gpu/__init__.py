"""Everything that needs a GPU, in one command of at most 440 seconds: the body of ``make gpu``.

``run`` is the place to start reading: it takes the ``steps`` in order. A step names jobs; ``pool`` runs each
as a process of its own and replaces those that crash or hang; ``record`` keeps what they tell, line by line.
The processes are the ``programs`` here and those of ``tests/gpu``; what they have in common is in ``worker``.

All but the ``programs`` and ``filling`` imports the standard library alone: pyops may not be built yet.
"""
