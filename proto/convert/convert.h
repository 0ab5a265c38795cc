// The only place where proto messages meet our own types. FromProto validates everything once;
// after it the rest of the program trusts its types. ToProto cannot fail.
#ifndef OSCARKV_PROTO_CONVERT_CONVERT_H_
#define OSCARKV_PROTO_CONVERT_CONVERT_H_

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include <grpcpp/support/status.h>

#include "proto/wire/item_status.h"
#include "proto/wire/namespace_spec.h"

#include "oscarkv/v1/types.pb.h"

namespace oscarkv {

// kInvalidArgument naming the field. Unspecified enums take the defaults that types.proto states.
absl::StatusOr<NamespaceSpec> FromProto(const v1::NamespaceSpec& spec);
void ToProto(const NamespaceSpec& spec, v1::NamespaceSpec* out);

absl::StatusOr<Encoding> FromProto(v1::Encoding encoding);
v1::Encoding ToProto(Encoding encoding);

v1::ItemStatus ToProto(ItemStatus status);
// An unknown number, from a newer server, is kInvalid.
ItemStatus FromProto(v1::ItemStatus status);

// absl and gRPC share their status codes. Messages are cut off after 2 KiB.
grpc::Status ToGrpcStatus(const absl::Status& status);
absl::Status FromGrpcStatus(const grpc::Status& status);

}  // namespace oscarkv

#endif  // OSCARKV_PROTO_CONVERT_CONVERT_H_
