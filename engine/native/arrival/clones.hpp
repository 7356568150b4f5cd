// Clones: a loop compiled for several instruction sets on x86-64 Linux, with AVX-512, with AVX2 and for any processor; the
// loader picks one. Elsewhere the compiler's baseline suffices (NEON on ARM). The sanitizers cannot instrument the picking
// function, and only gcc 12 and later take the name of the level with AVX-512 here.
#pragma once
#include <cstddef>  // brings __GLIBC__

#if defined(__x86_64__) && defined(__GLIBC__) && !defined(HEADRACE_SANITIZE)
#if !defined(__clang__) && __GNUC__ >= 12
#define HEADRACE_CLONES __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define HEADRACE_CLONES __attribute__((target_clones("avx2", "default")))
#endif
#else
#define HEADRACE_CLONES
#endif
