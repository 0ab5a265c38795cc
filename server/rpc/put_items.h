// What a put says of its pages, checked and begun the same way whatever path their bytes come by.
#ifndef OSCARKV_SERVER_RPC_PUT_ITEMS_H_
#define OSCARKV_SERVER_RPC_PUT_ITEMS_H_

#include <cstdint>

#include "absl/status/statusor.h"

#include "server/core/page_store.h"
#include "server/rpc/rpc_context.h"

#include "oscarkv/v1/kv_cache.pb.h"

namespace oscarkv {

struct CheckedPut {
  const Namespace* space = nullptr;
  RequestTraits traits;
};

// kInvalidArgument: too many items, or a key twice; the errors of RpcContext::Resolve, TraitsOf,
// and, with PACKED pages, CodecFor: pages that nobody could read are not taken.
absl::StatusOr<CheckedPut> CheckPut(RpcContext& context, const v1::PutHeader& header);

// Whether what item `index` extends has to be brought back before it is begun (ParentLoader), on a
// thread that may wait for a device.
bool ParentIsArchived(RpcContext& context, const CheckedPut& put, const v1::PutHeader& header,
                      uint32_t index);

// Of an item whose parent finds no room while WIDE pages are being re-encoded (kBusy).
inline constexpr char kParentBusy[] = "room is being made for what it extends, which is on disk";

// Reserves the page of item `index`, and takes its bytes from the budgets of bytes in flight (kBusy
// or kQuota when they do not have them). `open_parent`: PutItem's.
BeginPutResult BeginPutItem(RpcContext& context, const CheckedPut& put, const v1::PutHeader& header,
                            uint32_t index, InflightBytes* inflight,
                            const PutSlot* open_parent = nullptr);

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_RPC_PUT_ITEMS_H_
