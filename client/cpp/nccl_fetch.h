// Pages that a server's GPU sends to this worker's, over NCCL.
#ifndef OSCARKV_CLIENT_CPP_NCCL_FETCH_H_
#define OSCARKV_CLIENT_CPP_NCCL_FETCH_H_

#include <memory>

#include "client/cpp/page_path.h"

namespace oscarkv::client {

// For sinks whose device_pages() have a receiver, fetches of stored pages and of all heads.
std::shared_ptr<FetchPath> MakeNcclFetchPath();

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_CPP_NCCL_FETCH_H_
