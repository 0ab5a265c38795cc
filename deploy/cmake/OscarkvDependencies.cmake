# Every third-party library comes from the distribution (deploy/packages/). Found here once, linked by the folder that
# is allowed to use it (tests/lint/layers.txt).
find_package(Threads REQUIRED)
find_package(absl CONFIG REQUIRED)
find_package(Protobuf REQUIRED)
find_package(gRPC CONFIG REQUIRED)
find_package(prometheus-cpp CONFIG REQUIRED)
find_package(hwy CONFIG REQUIRED)
find_package(Eigen3 CONFIG REQUIRED)
find_package(yaml-cpp CONFIG REQUIRED)
find_package(nlohmann_json CONFIG REQUIRED)
find_package(CLI11 CONFIG REQUIRED)
find_package(OpenSSL REQUIRED COMPONENTS Crypto)
find_package(GTest CONFIG REQUIRED)
find_package(PkgConfig REQUIRED)
pkg_check_modules(liburing REQUIRED IMPORTED_TARGET liburing>=2.2)
if(OSCARKV_BENCHMARKS)
  find_package(benchmark CONFIG REQUIRED)
endif()
if(OSCARKV_PYTHON)
  find_package(Python3 REQUIRED COMPONENTS Interpreter Development.Module)
  set(PYTHON_EXECUTABLE ${Python3_EXECUTABLE})
  # From PyPI (deploy/packages/python.txt): the distribution's is too old for numpy 2. `pip install` sets pybind11_DIR.
  if(NOT pybind11_DIR)
    execute_process(COMMAND ${PROJECT_SOURCE_DIR}/build/venv/bin/python -m pybind11 --cmakedir
                    OUTPUT_VARIABLE pybind11_DIR OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  endif()
  find_package(pybind11 2.13 CONFIG REQUIRED)
endif()

# Set by clang builds that want libFuzzer and by sanitizer presets; product code never tests for it.
set(OSCARKV_SANITIZE "" CACHE STRING "Sanitizers, as in -fsanitize=...; empty for none")
if(OSCARKV_SANITIZE)
  add_compile_options(-fsanitize=${OSCARKV_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${OSCARKV_SANITIZE})
endif()

# A fast linker where there is one: links are a third of an incremental build.
find_program(OSCARKV_LLD NAMES ld.lld-14 ld.lld)
if(OSCARKV_LLD)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
    add_link_options(-fuse-ld=${OSCARKV_LLD})
  elseif(EXISTS /usr/bin/ld.lld)
    add_link_options(-fuse-ld=lld)
  endif()
endif()

find_program(OSCARKV_CCACHE ccache)
if(OSCARKV_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  # Sloppiness that precompiled headers need; the base dir lets checkouts share results.
  set(CMAKE_CXX_COMPILER_LAUNCHER
      ${CMAKE_COMMAND} -E env CCACHE_BASEDIR=${PROJECT_SOURCE_DIR} CCACHE_NOHASHDIR=1
      CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime ${OSCARKV_CCACHE})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CMAKE_CXX_COMPILER_LAUNCHER})
endif()

find_package(CUDAToolkit QUIET)
if(CUDAToolkit_FOUND)
  message(STATUS "CUDA ${CUDAToolkit_VERSION} found; kernels that need it are built with -DOSCARKV_CUDA=ON")
elseif(OSCARKV_CUDA)
  message(FATAL_ERROR "OSCARKV_CUDA=ON but no CUDA toolkit was found; install it or leave the option off")
endif()
# NCCL's header; its library is loaded when it is wanted (kernels/comm/nccl_api.h).
find_path(OSCARKV_NCCL_INCLUDE_DIR nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
if(OSCARKV_CUDA AND NOT OSCARKV_NCCL_INCLUDE_DIR)
  message(FATAL_ERROR "OSCARKV_CUDA=ON but nccl.h was not found. Install libnccl-dev (NVIDIA's package), or get it with "
          "`pip download --no-deps nvidia-nccl-cu13`, unpack the wheel and set OSCARKV_NCCL_INCLUDE_DIR to its nvidia/nccl/include")
endif()
if(OSCARKV_CUDA)
  # Hopper, with the instructions that only its own target has; named by hand, because CMake 3.25 does not know 90a.
  set(CMAKE_CUDA_ARCHITECTURES OFF)
  set(CMAKE_CUDA_FLAGS "${CMAKE_CUDA_FLAGS} -gencode=arch=compute_90a,code=sm_90a")
  enable_language(CUDA)
  # CMake 3.25.1 does not know nvcc's C++20 switch.
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA_STANDARD 20)
endif()
