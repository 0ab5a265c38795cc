#include "server/rpc/put_items.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

#include "kernels/base/status_macros.h"
#include "proto/convert/convert.h"

namespace oscarkv {
namespace {

// Views of the header.
absl::StatusOr<PutItem> ItemOf(const CheckedPut& put, const v1::PutHeader& header, uint32_t index) {
  const v1::PutItem& item = header.items(static_cast<int>(index));
  OSCARKV_ASSIGN_OR_RETURN(const Encoding encoding, FromProto(item.encoding()));
  return PutItem{
      .key = item.key(),
      .parent = item.parent(),
      .first_position = item.first_position(),
      .encoding = encoding,
      .bytes = item.bytes(),
      .block_crcs = {item.block_crc32c().data(), static_cast<size_t>(item.block_crc32c_size())},
      .request = put.traits,
      .ends_put =
          header.more_pages() == 0 && index + 1 == static_cast<uint32_t>(header.items_size())};
}

}  // namespace

absl::StatusOr<CheckedPut> CheckPut(RpcContext& context, const v1::PutHeader& header) {
  CheckedPut put;
  OSCARKV_ASSIGN_OR_RETURN(put.space, context.Resolve(header.scope()));
  const auto items = static_cast<uint32_t>(header.items_size());
  if (items > context.options().max_items) {
    return absl::InvalidArgumentError(
        absl::StrCat("at most ", context.options().max_items, " items in one call, found ", items));
  }
  absl::flat_hash_set<std::string_view> keys;
  bool packed = false;
  for (const v1::PutItem& item : header.items()) {
    if (!keys.insert(item.key()).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("key ", absl::BytesToHexString(item.key()), " stands twice in one put"));
    }
    packed = packed || item.encoding() == v1::PACKED;
  }
  // Pages that nobody could read are not taken.
  if (packed) OSCARKV_RETURN_IF_ERROR(context.CodecFor(*put.space).status());
  OSCARKV_ASSIGN_OR_RETURN(put.traits, context.TraitsOf(header.hints()));
  const std::vector<std::string_view> all(keys.begin(), keys.end());
  put.traits.new_tokens =
      (uint64_t{context.store().CountUnseen(*put.space, all)} + header.more_pages()) *
      put.space->page_tokens();
  return put;
}

bool ParentIsArchived(RpcContext& context, const CheckedPut& put, const v1::PutHeader& header,
                      uint32_t index) {
  const absl::StatusOr<PutItem> item = ItemOf(put, header, index);
  return item.ok() && context.store().ParentIsArchived(*put.space, *item);
}

BeginPutResult BeginPutItem(RpcContext& context, const CheckedPut& put, const v1::PutHeader& header,
                            uint32_t index, InflightBytes* inflight, const PutSlot* open_parent) {
  absl::StatusOr<PutItem> item = ItemOf(put, header, index);
  if (!item.ok()) return {{ItemStatus::kInvalid, std::string(item.status().message())}, PutSlot()};
  if (item->bytes == put.space->page_bytes(item->encoding)) {
    ItemResult why_not;
    *inflight = context.TakeInflight(*put.space, item->bytes, &why_not);
    if (!*inflight) return {std::move(why_not), PutSlot()};
  }
  item->open_parent = open_parent;
  return context.store().BeginPut(*put.space, *item);
}

}  // namespace oscarkv
