"""Examples of the notes that are no networks; each file has a function ``example(output)``."""
