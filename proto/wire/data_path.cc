#include "proto/wire/data_path.h"

namespace oscarkv {

std::string_view DataPathName(DataPath path) {
  switch (path) {
    case DataPath::kGrpc:
      return "grpc";
    case DataPath::kShm:
      return "shm";
    case DataPath::kNccl:
      return "nccl";
    case DataPath::kIpc:
      return "ipc";
  }
  return "unknown";
}

std::optional<DataPath> ParseDataPath(std::string_view name) {
  for (const DataPath path : kDataPaths)
    if (DataPathName(path) == name) return path;
  return std::nullopt;
}

std::string_view DirectionName(Direction direction) {
  return direction == Direction::kFetch ? "fetch" : "push";
}

}  // namespace oscarkv
