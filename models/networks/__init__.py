"""The networks, a file for each family. All files here are imported, so that each registers its networks."""

from importlib import import_module
from pathlib import Path

for _file in sorted(Path(__file__).parent.glob("[!_]*.py")):
    import_module(f"{__name__}.{_file.stem}")
