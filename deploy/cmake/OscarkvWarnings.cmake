# Warnings are errors with g++ 12 and clang 14. Generated code does not link this.
add_library(oscarkv_warnings INTERFACE)
target_compile_options(oscarkv_warnings INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Werror -Wshadow -Wnon-virtual-dtor -Wold-style-cast -Wcast-qual -Wconversion
    -Wsign-conversion -Wundef -Wvla -Wdouble-promotion -Wimplicit-fallthrough>
  $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wsuggest-override -Wno-psabi>
  $<$<COMPILE_LANG_AND_ID:CXX,Clang>:-Wthread-safety -Wshorten-64-to-32 -Wextra-semi>)
