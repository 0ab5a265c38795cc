// How page bytes travel between a client and a server. Control always goes by gRPC.
#ifndef OSCARKV_PROTO_WIRE_DATA_PATH_H_
#define OSCARKV_PROTO_WIRE_DATA_PATH_H_

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

namespace oscarkv {

// Numbers equal oscarkv.v1.DataPath.
enum class DataPath : uint8_t {
  kGrpc = 1,  // streams, over TCP or a Unix socket: what everybody has
  kShm = 2,   // memory that both processes of one host map
  kNccl = 3,  // between GPUs, of one host or of two
  kIpc = 4,   // memory of a GPU that another process of the host reads
};

// The best first: of those that both ends have, the first is taken.
inline constexpr std::array<DataPath, 4> kDataPaths = {DataPath::kIpc, DataPath::kShm,
                                                       DataPath::kNccl, DataPath::kGrpc};

// Whether pages go between the memory of GPUs.
inline constexpr bool IsOfDevices(DataPath path) {
  return path == DataPath::kIpc || path == DataPath::kNccl;
}

enum class Direction : uint8_t { kFetch = 0, kPush = 1 };  // to the client; to the server
inline constexpr std::array<Direction, 2> kDirections = {Direction::kFetch, Direction::kPush};

// "grpc", "shm", "nccl", "ipc": in logs, metrics and configurations.
std::string_view DataPathName(DataPath path);
std::optional<DataPath> ParseDataPath(std::string_view name);
std::string_view DirectionName(Direction direction);  // "fetch", "push"

}  // namespace oscarkv

#endif  // OSCARKV_PROTO_WIRE_DATA_PATH_H_
