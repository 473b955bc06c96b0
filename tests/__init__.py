"""The tests. ``suite`` holds what the files of the ops share; see ``suite/__init__.py``."""
