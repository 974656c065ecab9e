"""Building blocks for methods that learn from data or measure live models.

A live merge whose coefficients have an exact gradient, passes of unlabeled batches through it,
experts as teachers, searches that resume, processes that share the tasks, and statistics of
experts. The library knows pools and tasks, but no method. The stub `__init__.pyi` lists the names
and their homes.
"""

from fusion_core.commands import lazy_exports

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
