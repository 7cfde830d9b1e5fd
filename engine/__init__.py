"""How a job runs: elements, graph, plan, subtasks, channels, barriers, checkpoints, recovery.

This package exports nothing itself: import the module that holds what you need by its full name,
``from millstream.engine.element import Barrier``.
"""
