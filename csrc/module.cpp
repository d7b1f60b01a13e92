// The Python module drsn_ops._C: what was built. No tensor passes here, and no header of PyTorch is included.
#include <pybind11/pybind11.h>

PYBIND11_MODULE(_C, m, pybind11::mod_gil_not_used()) {
  m.def(
      "build_info", [] { return pybind11::module_::import("json").attr("loads")(DRSN_BUILD_INFO); },
      "What setup.py wrote into build_info.json.");
}
