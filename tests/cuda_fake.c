/* Stands for the CUDA driver: copies are memory copies, every call is noted, and a function can be made to fail. */
#include <pthread.h>
#include <stdint.h>
#include <string.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static char noted[1 << 20];
static char broken[64];
static int broken_code, broken_after, inverted;
static int64_t copied, from_locked;
static struct { uint64_t begin, end; } locked[64];
static char stream;

static int note(const char *name) {
    int code = 0;
    pthread_mutex_lock(&mutex);
    if (strlen(noted) + strlen(name) + 2 < sizeof noted) {
        strcat(noted, name);
        strcat(noted, " ");
    }
    if (strcmp(name, broken) == 0 && broken_after-- <= 0) code = broken_code;
    pthread_mutex_unlock(&mutex);
    return code;
}

/* For the test: the names of the calls, bytes copied (all, and from page-locked memory), inverted copies, and a function that fails after `after` calls. */
const char *fake_calls(void) { return noted; }
int64_t fake_copied(void) { return copied; }
int64_t fake_from_locked(void) { return from_locked; }
void fake_invert(int flag) { inverted = flag; }
void fake_break(const char *name, int code, int after) {
    pthread_mutex_lock(&mutex);
    strncpy(broken, name, sizeof broken - 1);
    broken_code = code;
    broken_after = after;
    pthread_mutex_unlock(&mutex);
}

int cuInit(unsigned flags) { return (void)flags, note("cuInit"); }
int cuDeviceGet(int *device, int number) { return *device = number, note("cuDeviceGet"); }
int cuDevicePrimaryCtxRetain(void **context, int device) {
    return (void)device, *context = &stream, note("cuDevicePrimaryCtxRetain");
}
int cuCtxSetCurrent(void *context) { return context != &stream ? 201 : note("cuCtxSetCurrent"); }
int cuStreamCreate(void **made, unsigned flags) { return (void)flags, *made = &stream, note("cuStreamCreate"); }
int cuStreamSynchronize(void *waited) { return waited != &stream ? 400 : note("cuStreamSynchronize"); }
int cuStreamDestroy_v2(void *destroyed) { return destroyed != &stream ? 400 : note("cuStreamDestroy_v2"); }
int cuMemHostRegister_v2(void *memory, size_t size, unsigned flags) {
    const int code = ((void)flags, note("cuMemHostRegister_v2"));
    pthread_mutex_lock(&mutex);
    for (int i = 0; code == 0 && i < 64; ++i) {
        if (locked[i].end != 0) continue;
        locked[i].begin = (uint64_t)(uintptr_t)memory;
        locked[i].end = locked[i].begin + size;
        break;
    }
    pthread_mutex_unlock(&mutex);
    return code;
}
int cuMemHostUnregister(void *memory) {
    pthread_mutex_lock(&mutex);
    for (int i = 0; i < 64; ++i) {
        if (locked[i].begin == (uint64_t)(uintptr_t)memory) locked[i].begin = locked[i].end = 0;
    }
    pthread_mutex_unlock(&mutex);
    return note("cuMemHostUnregister");
}
int cuMemcpyAsync(uint64_t into, uint64_t from, size_t size, void *queue) {
    int code = queue != &stream ? 400 : note("cuMemcpyAsync");
    if (code != 0) return code;
    unsigned char *target = (unsigned char *)(uintptr_t)into;
    const unsigned char *source = (const unsigned char *)(uintptr_t)from;
    for (size_t i = 0; i < size; ++i) target[i] = inverted ? (unsigned char)~source[i] : source[i];
    pthread_mutex_lock(&mutex);
    copied += (int64_t)size;
    for (int i = 0; i < 64; ++i) {
        if (from >= locked[i].begin && from + size <= locked[i].end) from_locked += (int64_t)size;
    }
    pthread_mutex_unlock(&mutex);
    return 0;
}
