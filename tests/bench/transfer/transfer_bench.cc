// Moves pages between two processes of one machine, by every path and beside other stores.
// tests/bench/transfer.py starts the servers and runs this:
//
//   transfer_bench measure --peer ours --endpoint E --page-bytes N ...   one JSON object a line
//   transfer_bench lookups --endpoint E ...                              the same, of look-ups
//   transfer_bench serve-bare | serve-raw --endpoint E                   the other ends of two
//   peers
#include <malloc.h>

#include <cstdio>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "kernels/base/deadlocks.h"
#include "tests/bench/transfer/lookups.h"
#include "tests/bench/transfer/moving.h"
#include "tests/bench/transfer/transfer_peer.h"

namespace oscarkv::bench {
namespace {

int Main(int argc, char** argv) {
  // As processes that move much have it, and oscarkvd: freed memory is kept.
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 256 << 20);
  LookForNoDeadlocks();
  const std::vector<std::string> peers = {"ours", "bare", "raw", "redis", "memcpy"};
  CLI::App app("Moves pages between two processes of one machine.");
  app.require_subcommand(1);
  Plan plan;
  LookupPlan lookups;
  std::string endpoint;
  CLI::App* measure = app.add_subcommand("measure");
  measure->add_option("--peer", plan.peer)->required()->check(CLI::IsMember(peers));
  measure->add_option("--endpoint", plan.options.endpoint);
  measure->add_option("--page-bytes", plan.options.page_bytes)->required();
  std::string path = "grpc";
  measure->add_option("--path", path)->check(CLI::IsMember({"grpc", "shm"}));
  measure->add_flag("!--no-checksum", plan.options.checksum);
  measure->add_option("--connections", plan.connections)->delimiter(',');
  measure->add_option("--batches", plan.batches)->delimiter(',');
  measure->add_option("--works", plan.works)->delimiter(',');
  measure->add_option("--seconds", plan.seconds);
  measure->add_option("--set-bytes", plan.set_bytes);
  measure->add_option("--beside", plan.beside, "What the peer is held against, by turns.")
      ->check(CLI::IsMember(peers));
  measure->add_option("--beside-endpoint", plan.beside_endpoint);
  measure->add_option("--turns", plan.turns);
  CLI::App* lookup = app.add_subcommand("lookups");
  lookup->add_option("--endpoint", lookups.endpoint)->required();
  lookup->add_option("--peer", lookups.peer, "Of others, a page of 2 KiB is fetched instead.")
      ->check(CLI::IsMember(peers));
  lookup->add_option("--bulk-peer", lookups.bulk_peer)->check(CLI::IsMember(peers));
  lookup->add_option("--bulk-endpoint", lookups.bulk_endpoint);
  lookup->add_option("--keys", lookups.keys);
  lookup->add_option("--clients", lookups.clients);
  lookup->add_option("--bulk", lookups.bulk, "Clients that fetch pages meanwhile.");
  lookup->add_option("--seconds", lookups.seconds);
  CLI::App* bare = app.add_subcommand("serve-bare");
  CLI::App* raw = app.add_subcommand("serve-raw");
  for (CLI::App* serve : {bare, raw}) {
    serve->add_option("--endpoint", endpoint)->required();
    serve->add_option("--set-bytes", plan.set_bytes);
  }
  CLI11_PARSE(app, argc, argv);
  plan.options.path = ParseDataPath(path).value_or(DataPath::kGrpc);
  absl::Status status;
  if (measure->parsed()) status = Measure(plan);
  if (lookup->parsed()) status = MeasureLookups(lookups);
  if (bare->parsed()) status = ServeBareStream(endpoint, plan.set_bytes);
  if (raw->parsed()) status = ServeRawSocket(endpoint, plan.set_bytes);
  if (status.ok()) return 0;
  std::fprintf(stderr, "transfer_bench: %s\n", status.ToString().c_str());
  return 1;
}

}  // namespace
}  // namespace oscarkv::bench

int main(int argc, char** argv) { return oscarkv::bench::Main(argc, argv); }
