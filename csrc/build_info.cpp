// Facts of the build as the compiler saw them, of builds in place only: a wheel has them as data, since a
// module would tie it to one Python. Nothing here runs kernels, so it loads without torch.
#include <pybind11/pybind11.h>

#include "build_facts.h"  // written by setup.py

PYBIND11_MODULE(_build_info, m) {
  m.doc() = "What was compiled into pyops, and how.";
  m.attr("facts_json") = PYOPS_BUILD_FACTS;
  m.attr("compiler") = __VERSION__;
}
