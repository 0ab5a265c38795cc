// Pages that a server's GPU holds, for sinks that can (client/cpp/device_pages.h): fetches of
// stored pages and of all heads.
#ifndef OSCARKV_CLIENT_CPP_DEVICE_FETCH_H_
#define OSCARKV_CLIENT_CPP_DEVICE_FETCH_H_

#include <memory>

#include "client/cpp/page_path.h"

namespace oscarkv::client {

// Read where they lie, on this host.
std::shared_ptr<FetchPath> MakeIpcFetchPath();
// Sent to sinks that have a receiver.
std::shared_ptr<FetchPath> MakeNcclFetchPath();

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_CPP_DEVICE_FETCH_H_
