// The flags of model tests.
#ifndef OSCARKV_TESTS_MODEL_MODEL_FLAGS_H_
#define OSCARKV_TESTS_MODEL_MODEL_FLAGS_H_

#include <cstdint>
#include <initializer_list>

namespace oscarkv::testing {

// `--name=N` sets the number, `--name` the switch: a flag has one of them.
struct ModelFlag {
  const char* name;
  uint64_t* number = nullptr;
  bool* on = nullptr;
};

// Reads the flags and runs the program's tests. Returns its exit status: 2 when it was given
// anything else, after saying what there is.
int RunModelTests(int argc, char** argv, std::initializer_list<ModelFlag> flags);

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_MODEL_MODEL_FLAGS_H_
