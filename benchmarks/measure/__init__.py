"""How a case is measured: contenders, checks, clocks, memory, the machine; start at :mod:`.harness`."""
