// The gRPC stubs of one channel. Included by the client's own sources only: its public headers know
// no gRPC.
#ifndef OSCARKV_CLIENT_CPP_WIRE_H_
#define OSCARKV_CLIENT_CPP_WIRE_H_

#include <memory>
#include <string>

#include <grpcpp/grpcpp.h>

#include "client/cpp/hints.h"

#include "oscarkv/v1/admin.grpc.pb.h"
#include "oscarkv/v1/kv_cache.grpc.pb.h"
#include "oscarkv/v1/peer.grpc.pb.h"

namespace oscarkv::client {

struct WireStubs {
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::KvCache::Stub> cache;
  std::unique_ptr<v1::Admin::Stub> admin;
  std::unique_ptr<v1::Peer::Stub> peer;
};

// Opens a channel lazily: nothing is sent yet. Each has a connection of its own.
std::shared_ptr<grpc::Channel> MakeChannel(const std::string& endpoint);
WireStubs MakeWireStubs(const std::string& endpoint);

v1::RequestHints ToProto(const RequestHints& hints);

// "gpu", "host" or "disk"; "tier <number>" for one that this client does not know.
std::string TierName(v1::Tier tier);

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_CPP_WIRE_H_
