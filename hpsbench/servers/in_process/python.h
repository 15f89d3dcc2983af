// CPython inside the server: loaded from the library of the environment that the models run in.
//
// Only functions of the stable interface are used, found by name, so that one build of this
// backend fits every Python and needs none of its headers.
#ifndef HPSBENCH_SERVERS_IN_PROCESS_PYTHON_H_
#define HPSBENCH_SERVERS_IN_PROCESS_PYTHON_H_

#include <cstdint>
#include <string>
#include <vector>

namespace hpsbench {

struct PyObject;

#define HPSBENCH_PYTHON_FUNCTIONS(F)                               \
  F(int, Py_IsInitialized, ())                                     \
  F(void, Py_InitializeEx, (int install_signal_handlers))          \
  F(void*, PyEval_SaveThread, ())                                  \
  F(int, PyGILState_Ensure, ())                                    \
  F(void, PyGILState_Release, (int))                               \
  F(PyObject*, PyImport_ImportModule, (const char*))               \
  F(PyObject*, PyObject_GetAttrString, (PyObject*, const char*))   \
  F(PyObject*, PyObject_CallObject, (PyObject*, PyObject*))        \
  F(PyObject*, PyTuple_New, (intptr_t))                            \
  F(int, PyTuple_SetItem, (PyObject*, intptr_t, PyObject*))        \
  F(PyObject*, PyTuple_GetItem, (PyObject*, intptr_t))             \
  F(intptr_t, PyTuple_Size, (PyObject*))                           \
  F(PyObject*, PyLong_FromLongLong, (long long))                   \
  F(long long, PyLong_AsLongLong, (PyObject*))                     \
  F(PyObject*, PyUnicode_FromStringAndSize, (const char*, intptr_t)) \
  F(const char*, PyUnicode_AsUTF8AndSize, (PyObject*, intptr_t*))  \
  F(void, PyErr_Print, ())                                         \
  F(void, Py_IncRef, (PyObject*))                                  \
  F(void, Py_DecRef, (PyObject*))

// The interpreter's functions, by their names; null until `start_python`.
struct PythonFunctions {
#define HPSBENCH_POINTER(result, name, arguments) result(*name) arguments = nullptr;
  HPSBENCH_PYTHON_FUNCTIONS(HPSBENCH_POINTER)
#undef HPSBENCH_POINTER
};
extern PythonFunctions py;

// Starts the interpreter of the shared library at `path`, once for the life of the process: its
// extension modules cannot be unloaded. The environment is that of the first python3 on PATH.
// Returns what went wrong, or nothing.
std::string start_python(const std::string& path);

// Holds the interpreter's lock while it lives.
class Gil {
 public:
  Gil() : state_(py.PyGILState_Ensure()) {}
  ~Gil() { py.PyGILState_Release(state_); }
  Gil(const Gil&) = delete;
  Gil& operator=(const Gil&) = delete;

 private:
  const int state_;
};

// A reference of ours to an object; the lock must be held wherever one goes.
class Object {
 public:
  Object() = default;
  explicit Object(PyObject* owned) : object_(owned) {}
  Object(Object&& other) noexcept : object_(other.release()) {}
  Object& operator=(Object&& other) noexcept {
    PyObject* const old = object_;
    object_ = other.release();
    if (old != nullptr) py.Py_DecRef(old);
    return *this;
  }
  ~Object() {
    if (object_ != nullptr) py.Py_DecRef(object_);
  }

  PyObject* get() const { return object_; }
  PyObject* release() {
    PyObject* const object = object_;
    object_ = nullptr;
    return object;
  }
  explicit operator bool() const { return object_ != nullptr; }

  // Another reference to the same.
  Object share() const {
    py.Py_IncRef(object_);
    return Object(object_);
  }

 private:
  PyObject* object_ = nullptr;
};

Object integer(int64_t value);
Object text(const std::string& value);
Object tuple(std::vector<Object> items);

// What a tuple of the host's holds; the reference is the tuple's.
PyObject* item(PyObject* tuple, intptr_t index);
std::string as_text(PyObject* text);
std::vector<int64_t> as_integers(PyObject* tuple);

// Calls `function` of the module that the backend speaks to. Null where it raised, which it does
// not by its contract; what it raised is then in the log.
Object call_host(const char* function, std::vector<Object> arguments);

}  // namespace hpsbench

#endif  // HPSBENCH_SERVERS_IN_PROCESS_PYTHON_H_
