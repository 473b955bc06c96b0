"""The ops as plain torch formulas: the reference backend, one module for each op.

It serves devices and dtypes that no kernel serves, gradients that no kernel computes, and double
backward. Written to be read: one line per term of the formula, in float32 (float64 for float64). The formulas
import no op.
"""
