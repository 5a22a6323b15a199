# The CPU kernels: every file once per instruction set, chosen at run time (csrc/include/lddgan/isa.h).
# Sets isa_names and cpu_objects; included by the extension and by tests/cpu_kernels.
file(GLOB CPU_KERNELS CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/cpu/*.cpp)
set(isa_names baseline)
set(isa_flags_baseline "")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
  add_compile_definitions(LDDGAN_X86)
  list(APPEND isa_names avx2 avx512 avx512bf16)
  set(isa_flags_baseline -O1)  # for processors older than AVX2: it is compiled fast, not fast
  set(isa_flags_avx2 -mavx2 -mfma -mf16c)
  set(isa_flags_avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c
      -mprefer-vector-width=512)
  set(isa_flags_avx512bf16 ${isa_flags_avx512} -mavx512bf16)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64|ARM64")
  add_compile_definitions(LDDGAN_AARCH64)
  list(APPEND isa_names neon)
  set(isa_flags_baseline -O1)  # to compare with
  set(isa_flags_neon -DLDDGAN_NEON)  # which every such processor has
endif()
set(cpu_objects "")
foreach(isa IN LISTS isa_names)
  add_library(cpu_${isa} OBJECT ${CPU_KERNELS})
  target_include_directories(cpu_${isa} PRIVATE ${CMAKE_CURRENT_LIST_DIR}/include)
  target_compile_definitions(cpu_${isa} PRIVATE LDDGAN_ISA=${isa})
  target_compile_options(cpu_${isa} PRIVATE ${isa_flags_${isa}} -ffp-contract=fast -fno-math-errno
    -fno-trapping-math -Wall -Wextra -Wno-psabi -Wno-ignored-attributes
    -Wno-uninitialized -Wno-maybe-uninitialized)
  if(isa STREQUAL LDDGAN_SANITIZE_ISA)
    target_compile_options(cpu_${isa} PRIVATE ${sanitizers})
  endif()
  list(APPEND cpu_objects $<TARGET_OBJECTS:cpu_${isa}>)
endforeach()
