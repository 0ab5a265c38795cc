#include "client/cpp/page_path.h"

#include <algorithm>

#include "proto/convert/convert.h"

namespace oscarkv::client {

void CountTaken(const absl::Status& sink, PagesTaken* taken) {
  if (sink.ok()) {
    ++taken->pages;
  } else if (absl::IsDataLoss(sink)) {
    taken->stop = ItemStatus::kCorrupt;
  } else {
    taken->sink = sink;
  }
}

void FillPutHeader(const Namespace::Impl& space, const PagesOffered& offered,
                   v1::PutHeader* header) {
  const PushRequest& request = offered.request;
  *header->mutable_scope() = space.MakeScope();
  *header->mutable_hints() = ToProto(offered.hints);
  const size_t end = offered.first + offered.pages.size();
  header->set_more_pages(static_cast<uint32_t>(request.keys.size() - end));
  for (size_t page = offered.first; page < end; ++page) {
    const EncodedPage& encoded = offered.pages[page - offered.first];
    v1::PutItem* item = header->add_items();
    item->set_key(request.keys[page]);
    item->set_parent(page == 0 ? request.parent : request.keys[page - 1]);
    item->set_first_position(request.first_position + page * space.page_tokens());
    item->set_encoding(ToProto(encoded.encoding));
    item->set_bytes(encoded.bytes.size());
    item->mutable_block_crc32c()->Add(encoded.block_crc32c.begin(), encoded.block_crc32c.end());
  }
}

void TakePutResults(const PagesOffered& offered, const v1::PutReply& reply, PushReport* report) {
  const size_t count = std::min(offered.pages.size(), static_cast<size_t>(reply.results_size()));
  for (size_t i = 0; i < count; ++i) {
    const v1::ItemResult& result = reply.results(static_cast<int>(i));
    report->statuses[offered.first + i] = FromProto(result.status());
    report->messages[offered.first + i] = result.message();
  }
}

}  // namespace oscarkv::client
