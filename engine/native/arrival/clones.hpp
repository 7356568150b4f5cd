// Clones: a loop compiled twice on x86-64 Linux, for AVX2 and for any processor; the loader picks one. Elsewhere the
// compiler's baseline suffices (NEON on ARM). The sanitizers cannot instrument the picking function.
#pragma once
#include <cstddef>  // brings __GLIBC__

#if defined(__x86_64__) && defined(__GLIBC__) && !defined(HEADRACE_SANITIZE)
#define HEADRACE_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define HEADRACE_CLONES
#endif
