// What the calls of all paths that bring pages have in common: requests of one form, and answers
// that are held to what was asked for. Included by the client's own sources only.
#ifndef OSCARKV_CLIENT_CPP_PAGE_CALLS_H_
#define OSCARKV_CLIENT_CPP_PAGE_CALLS_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

#include "client/cpp/page_path.h"
#include "proto/convert/convert.h"

namespace oscarkv::client {

// Names `count` pages from page `first` on. Request: one of those below, or DoorMap.
template <typename Request>
void NamePages(const Namespace::Impl& space, const PagesWanted& wanted, uint32_t first,
               size_t count, Request* request) {
  *request->mutable_scope() = space.MakeScope();
  for (const std::string& key : wanted.request.keys.subspan(first, count)) request->add_keys(key);
  request->set_lease_id(wanted.request.lease_id);
  *request->mutable_hints() = ToProto(wanted.request.hints);
}

// Asks for the wanted layers of them. Request: GetRequest, HoldPagesRequest or SendPagesRequest.
template <typename Request>
void AskForPages(const Namespace::Impl& space, const PagesWanted& wanted, uint32_t first,
                 size_t count, Request* request) {
  NamePages(space, wanted, first, count, request);
  request->set_first_layer(wanted.layers.first);
  request->set_layers(wanted.layers.count);
}

// The encoding of a page of which the server says so much. kDataLoss: the namespace has no such
// pages, or what is wanted of them has another size or other checksums than that.
absl::StatusOr<Encoding> CheckPage(const Namespace::Impl& space, const PagesWanted& wanted,
                                   size_t page, v1::Encoding encoding, uint64_t bytes,
                                   int checksums);

// Of a HoldPagesReply or SendPagesReply to a call for `asked` pages: whether it says one thing, of
// no more pages than that. kDataLoss: it does not.
template <typename Reply>
absl::Status CheckLeadingPages(const Reply& reply, uint32_t asked) {
  const auto pages = static_cast<uint32_t>(reply.pages_size());
  const bool stopped = reply.has_stop() && FromProto(reply.stop().status()) != ItemStatus::kOk;
  const int kinds = (pages > 0 ? 1 : 0) + (reply.elsewhere() > 0 ? 1 : 0) + (stopped ? 1 : 0);
  if (kinds == 1 && pages <= asked && reply.elsewhere() <= asked) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("of ", asked, " pages the server says that it brings ",
                                          pages, ", and has ", reply.elsewhere(), " elsewhere"));
}

// Takes over a checked reply that brings no pages. False: it brings some.
template <typename Reply>
bool TakeAbsence(const Reply& reply, PagesTaken* taken) {
  if (!reply.pages().empty()) return false;
  taken->elsewhere = reply.elsewhere();
  if (reply.has_stop()) taken->stop = FromProto(reply.stop().status());
  return true;
}

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_CPP_PAGE_CALLS_H_
