#include "python.h"

#include <dlfcn.h>

#include <mutex>
#include <utility>

namespace hpsbench {

PythonFunctions py;

namespace {
constexpr char kHost[] = "hpsbench.servers.in_process.host";

std::string load_functions(const std::string& path) {
  // Global: extension modules find the interpreter's symbols there, and nowhere else.
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (library == nullptr) return dlerror();
#define HPSBENCH_FIND(result, name, arguments)                                          \
  py.name = reinterpret_cast<result(*) arguments>(dlsym(library, #name));               \
  if (py.name == nullptr) return path + " has no " #name ": it is no supported Python"; 
  HPSBENCH_PYTHON_FUNCTIONS(HPSBENCH_FIND)
#undef HPSBENCH_FIND
  return {};
}
}  // namespace

std::string start_python(const std::string& path) {
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  if (py.Py_IsInitialized != nullptr && py.Py_IsInitialized()) return {};
  if (std::string problem = load_functions(path); !problem.empty()) return problem;
  // Signals stay the server's.
  py.Py_InitializeEx(0);
  py.PyEval_SaveThread();
  return {};
}

Object integer(int64_t value) { return Object(py.PyLong_FromLongLong(value)); }

Object text(const std::string& value) {
  return Object(
      py.PyUnicode_FromStringAndSize(value.data(), static_cast<intptr_t>(value.size())));
}

Object tuple(std::vector<Object> items) {
  Object made(py.PyTuple_New(static_cast<intptr_t>(items.size())));
  for (size_t i = 0; i < items.size(); ++i) {
    py.PyTuple_SetItem(made.get(), static_cast<intptr_t>(i), items[i].release());
  }
  return made;
}

PyObject* item(PyObject* tuple, intptr_t index) { return py.PyTuple_GetItem(tuple, index); }

std::string as_text(PyObject* text) {
  intptr_t size = 0;
  const char* const characters = py.PyUnicode_AsUTF8AndSize(text, &size);
  return characters == nullptr ? std::string() : std::string(characters, size);
}

std::vector<int64_t> as_integers(PyObject* tuple) {
  std::vector<int64_t> values(py.PyTuple_Size(tuple));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = py.PyLong_AsLongLong(item(tuple, static_cast<intptr_t>(i)));
  }
  return values;
}

Object call_host(const char* function, std::vector<Object> arguments) {
  const Object module(py.PyImport_ImportModule(kHost));
  const Object callable(module ? py.PyObject_GetAttrString(module.get(), function) : nullptr);
  const Object given = tuple(std::move(arguments));
  Object result(callable ? py.PyObject_CallObject(callable.get(), given.get()) : nullptr);
  if (!result) py.PyErr_Print();
  return result;
}

}  // namespace hpsbench
