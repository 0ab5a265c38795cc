// Pages that a GPU of this host holds, read there by a sink that can (client/cpp/device_pages.h).
#ifndef OSCARKV_CLIENT_CPP_IPC_FETCH_H_
#define OSCARKV_CLIENT_CPP_IPC_FETCH_H_

#include <memory>

#include "client/cpp/page_path.h"

namespace oscarkv::client {

// For sinks that have device_pages(), fetches of stored pages and of all heads.
std::shared_ptr<FetchPath> MakeIpcFetchPath();

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_CPP_IPC_FETCH_H_
