// What PTX's arithmetic and conversions compute, as pure functions of scalars. No function here branches on
// its data where a select will do: a loop over the 32 lanes of a warp that calls one is meant to vectorise.
//
// Modifiers are functions too, to be put together as the PTX ISA manual describes them: `fma.rm.ftz.sat.f32`
// is saturate(flush(fma<Rounding::rm>(flush(a), flush(b), flush(c)))).
#pragma once

#include "approximate.h"
#include "floats.h"
#include "halves.h"
#include "integers.h"
