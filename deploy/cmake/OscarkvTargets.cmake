# One function per kind of target. Each library `x` is the target oscarkv_x and the alias oscarkv::x; only the alias is
# linked. Headers form a file set based at the repository root, so `all_verify_interface_header_sets` compiles each alone.
include(GoogleTest)

# oscarkv_library(NAME x HDRS ... SRCS ... DEPS ... [PCH])
#   PCH: precompile the gRPC and protobuf headers, for folders that include them everywhere.
function(oscarkv_library)
  cmake_parse_arguments(ARG "PCH" "NAME" "HDRS;SRCS;DEPS" ${ARGN})
  set(target oscarkv_${ARG_NAME})
  if(ARG_SRCS)
    add_library(${target} STATIC ${ARG_SRCS})
    set(scope PUBLIC)
    target_link_libraries(${target} PRIVATE oscarkv_warnings)
  else()
    add_library(${target} INTERFACE)
    set(scope INTERFACE)
  endif()
  add_library(oscarkv::${ARG_NAME} ALIAS ${target})
  target_sources(${target} ${scope} FILE_SET HEADERS BASE_DIRS ${PROJECT_SOURCE_DIR} FILES ${ARG_HDRS})
  set_target_properties(${target} PROPERTIES VERIFY_INTERFACE_HEADER_SETS ON)
  target_link_libraries(${target} ${scope} ${ARG_DEPS})
  if(ARG_PCH AND NOT OSCARKV_NO_PCH)
    target_precompile_headers(${target} PRIVATE <grpcpp/grpcpp.h> <absl/status/statusor.h> <absl/strings/str_cat.h>
                              <string> <vector> <memory>)
  endif()
endfunction()

# oscarkv_program(NAME oscarkvd SRCS ... DEPS ...)
function(oscarkv_program)
  cmake_parse_arguments(ARG "" "NAME" "SRCS;DEPS" ${ARGN})
  add_executable(${ARG_NAME} ${ARG_SRCS})
  target_include_directories(${ARG_NAME} PRIVATE ${PROJECT_SOURCE_DIR})
  target_link_libraries(${ARG_NAME} PRIVATE ${ARG_DEPS} oscarkv_warnings)
  if(OSCARKV_SANITIZE MATCHES thread)
    # So that ThreadSanitizer knows what the distribution's absl::Mutex orders.
    target_link_libraries(${ARG_NAME} PRIVATE oscarkv_tsan_absl_mutex absl::synchronization)
  endif()
endfunction()

# oscarkv_test(NAME store_test SRCS ... DEPS ... LABELS ...): a GoogleTest program, one ctest entry per program.
function(oscarkv_test)
  cmake_parse_arguments(ARG "" "NAME" "SRCS;DEPS;LABELS" ${ARGN})
  oscarkv_program(NAME ${ARG_NAME} SRCS ${ARG_SRCS} DEPS ${ARG_DEPS} oscarkv::testing GTest::gmock GTest::gtest_main)
  add_test(NAME ${ARG_NAME} COMMAND ${ARG_NAME})
  if(NOT ARG_LABELS)
    set(ARG_LABELS unit)
  endif()
  set_tests_properties(${ARG_NAME} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT 300)
endfunction()

# oscarkv_benchmark(NAME codec_bench SRCS ... DEPS ...): a Google Benchmark program, run by `./run bench`, never by ctest.
function(oscarkv_benchmark)
  cmake_parse_arguments(ARG "" "NAME" "SRCS;DEPS" ${ARGN})
  if(NOT OSCARKV_BENCHMARKS)
    return()
  endif()
  oscarkv_program(NAME ${ARG_NAME} SRCS ${ARG_SRCS} DEPS ${ARG_DEPS} benchmark::benchmark)
endfunction()

# oscarkv_fuzz(NAME page_fuzz SRCS ... DEPS ...): with OSCARKV_FUZZ a libFuzzer program; otherwise the same entry point is
# linked with a driver that replays the corpus and seeded mutations of it, so that every build runs it (label fuzz).
function(oscarkv_fuzz)
  cmake_parse_arguments(ARG "" "NAME" "SRCS;DEPS" ${ARGN})
  set(corpus ${PROJECT_SOURCE_DIR}/tests/fuzz/corpus/${ARG_NAME})
  if(OSCARKV_FUZZ)
    oscarkv_program(NAME ${ARG_NAME} SRCS ${ARG_SRCS} DEPS ${ARG_DEPS})
    target_link_options(${ARG_NAME} PRIVATE -fsanitize=fuzzer)
    add_test(NAME ${ARG_NAME} COMMAND ${ARG_NAME} -runs=20000 -max_total_time=60 ${corpus})
  else()
    oscarkv_program(NAME ${ARG_NAME} SRCS ${ARG_SRCS} ${PROJECT_SOURCE_DIR}/tests/fuzz/replay_main.cc DEPS ${ARG_DEPS})
    add_test(NAME ${ARG_NAME} COMMAND ${ARG_NAME} ${corpus})
  endif()
  set_tests_properties(${ARG_NAME} PROPERTIES LABELS fuzz TIMEOUT 300)
endfunction()

# oscarkv_proto_library(NAME proto PROTOS ...): messages and gRPC stubs (with the raw-callback mix-ins), without our warnings.
function(oscarkv_proto_library)
  cmake_parse_arguments(ARG "" "NAME" "PROTOS" ${ARGN})
  set(target oscarkv_${ARG_NAME})
  add_library(${target} STATIC ${ARG_PROTOS})
  add_library(oscarkv::${ARG_NAME} ALIAS ${target})
  set_target_properties(${target} PROPERTIES CXX_CLANG_TIDY "")
  set(out ${PROJECT_BINARY_DIR}/generated)
  file(MAKE_DIRECTORY ${out})
  protobuf_generate(TARGET ${target} LANGUAGE cpp IMPORT_DIRS ${PROJECT_SOURCE_DIR}/proto PROTOC_OUT_DIR ${out})
  protobuf_generate(TARGET ${target} LANGUAGE grpc IMPORT_DIRS ${PROJECT_SOURCE_DIR}/proto PROTOC_OUT_DIR ${out}
                    GENERATE_EXTENSIONS .grpc.pb.h .grpc.pb.cc
                    PLUGIN "protoc-gen-grpc=$<TARGET_FILE:gRPC::grpc_cpp_plugin>")
  target_include_directories(${target} SYSTEM PUBLIC ${out})
  target_link_libraries(${target} PUBLIC protobuf::libprotobuf gRPC::grpc++)
endfunction()
