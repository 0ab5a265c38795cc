// A transform set with the file it came from, which is what the store holds and hashes.
#ifndef OSCARKV_CLIENT_PYTHON_SRC_TRANSFORM_HANDLE_H_
#define OSCARKV_CLIENT_PYTHON_SRC_TRANSFORM_HANDLE_H_

#include <memory>
#include <string>

#include "kernels/codec/transform_set.h"

namespace oscarkv::python {

struct TransformHandle {
  std::shared_ptr<const TransformSet> set;
  std::shared_ptr<const std::string> file;
  std::string hash;  // SHA-256 of the file
};

// Parses and checks a transform file. Raises ValueError when it is not one.
TransformHandle MakeTransformHandle(std::string file);

}  // namespace oscarkv::python

#endif  // OSCARKV_CLIENT_PYTHON_SRC_TRANSFORM_HANDLE_H_
