// The Python module drsn_ops._C: what was built. No tensor passes here, and no header of PyTorch is included.
#include <pybind11/pybind11.h>

#include <string>

namespace py = pybind11;

namespace {

#define DRSN_STRING_(x) #x
#define DRSN_STRING(x) DRSN_STRING_(x)
#if defined(__clang__)
constexpr const char* kCompiler =
    "clang " DRSN_STRING(__clang_major__) "." DRSN_STRING(__clang_minor__) "." DRSN_STRING(__clang_patchlevel__);
#elif defined(__GNUC__)
constexpr const char* kCompiler =
    "g++ " DRSN_STRING(__GNUC__) "." DRSN_STRING(__GNUC_MINOR__) "." DRSN_STRING(__GNUC_PATCHLEVEL__);
#else
constexpr const char* kCompiler = "unknown";
#endif

py::object text_or_none(const char* text) { return *text ? py::object(py::str(text)) : py::object(py::none()); }

py::list split(const std::string& text) {
  py::list parts;
  for (size_t begin = 0; begin < text.size();) {
    size_t end = text.find(';', begin);
    if (end == std::string::npos) end = text.size();
    if (end > begin) parts.append(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

py::dict build_info() {
  py::dict info;
  info["version"] = DRSN_VERSION;
  info["compiler"] = kCompiler;
  info["cuda"] = text_or_none(DRSN_CUDA_VERSION);
  info["cuda_arch"] = split(DRSN_CUDA_ARCHS);
  info["cuda_reason"] = text_or_none(DRSN_CUDA_REASON);
#if defined(__x86_64__)
  info["simd"] = split("default;avx2;avx512");
#else
  info["simd"] = split("default");
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  m.def("build_info", &build_info, "What the compiled libraries were built with, as plain values.");
}
