// Priority: what the system is told about a thread's reads.
#pragma once

#if defined(__APPLE__)
#include <sys/resource.h>
#elif defined(__linux__)
#include <sys/prctl.h>
#endif

namespace headrace {

// On macOS, speculative reads are of utility priority, so that the disk serves demand reads first (setiopolicy_np, thread
// scope). Linux has no such priority for most schedulers, and nothing is changed there. Returns whether it was changed.
inline bool set_read_priority(bool speculative) {
#if defined(__APPLE__)
    return setiopolicy_np(IOPOL_TYPE_DISK, IOPOL_SCOPE_THREAD, speculative ? IOPOL_UTILITY : IOPOL_IMPORTANT) == 0;
#else
    (void)speculative;
    return false;
#endif
}

// Disables Linux's timer slack for this thread, which delays each sleep by 50 us to save power.
inline void sleep_precisely() {
#if defined(__linux__)
    prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0);
#endif
}

}  // namespace headrace
