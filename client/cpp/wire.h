// What the client sends its calls by. Included by the client's own sources only: its public headers
// know no gRPC.
#ifndef OSCARKV_CLIENT_CPP_WIRE_H_
#define OSCARKV_CLIENT_CPP_WIRE_H_

#include <cstdint>
#include <memory>
#include <string>

#include <grpcpp/grpcpp.h>

#include "client/cpp/hints.h"

#include "oscarkv/v1/admin.pb.h"
#include "oscarkv/v1/kv_cache.pb.h"
#include "oscarkv/v1/peer.pb.h"

namespace oscarkv::client {

// The methods, as they are called.
namespace method {
inline constexpr char kBeginPush[] = "/oscarkv.v1.Peer/BeginPush";
inline constexpr char kClear[] = "/oscarkv.v1.KvCache/Clear";
inline constexpr char kDelete[] = "/oscarkv.v1.KvCache/Delete";
inline constexpr char kDeleteTransformSet[] = "/oscarkv.v1.Admin/DeleteTransformSet";
inline constexpr char kEndHold[] = "/oscarkv.v1.Peer/EndHold";
inline constexpr char kEndPush[] = "/oscarkv.v1.Peer/EndPush";
inline constexpr char kGet[] = "/oscarkv.v1.KvCache/Get";
inline constexpr char kGetTransformSet[] = "/oscarkv.v1.KvCache/GetTransformSet";
inline constexpr char kHoldPages[] = "/oscarkv.v1.Peer/HoldPages";
inline constexpr char kList[] = "/oscarkv.v1.KvCache/List";
inline constexpr char kLookup[] = "/oscarkv.v1.KvCache/Lookup";
inline constexpr char kOpenNamespace[] = "/oscarkv.v1.KvCache/OpenNamespace";
inline constexpr char kOpenPeer[] = "/oscarkv.v1.Peer/OpenPeer";
inline constexpr char kPersist[] = "/oscarkv.v1.KvCache/Persist";
inline constexpr char kPut[] = "/oscarkv.v1.KvCache/Put";
inline constexpr char kPutTransformSet[] = "/oscarkv.v1.KvCache/PutTransformSet";
inline constexpr char kReleaseLease[] = "/oscarkv.v1.KvCache/ReleaseLease";
inline constexpr char kSendPages[] = "/oscarkv.v1.Peer/SendPages";
inline constexpr char kSession[] = "/oscarkv.v1.KvCache/Session";
inline constexpr char kShareDevice[] = "/oscarkv.v1.Peer/ShareDevice";
inline constexpr char kStats[] = "/oscarkv.v1.Admin/Stats";
inline constexpr char kTouch[] = "/oscarkv.v1.KvCache/Touch";
inline constexpr char kVerify[] = "/oscarkv.v1.Admin/Verify";
}  // namespace method

// What a connection holds for a reader that does not get on.
inline constexpr uint64_t kReceivedAheadBytes = 16 << 20;

// What a channel is for.
enum class Traffic : uint8_t {
  kControl,  // small messages. gRPC does not ask all the time how much the line holds
  kPages,
};

// Opens a channel lazily: nothing is sent yet. Each has a connection of its own.
std::shared_ptr<grpc::Channel> MakeChannel(const std::string& endpoint, Traffic traffic);

v1::RequestHints ToProto(const RequestHints& hints);

// "gpu", "host" or "disk"; "tier <number>" for one that this client does not know.
std::string TierName(v1::Tier tier);

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_CPP_WIRE_H_
