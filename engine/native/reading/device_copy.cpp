#include "reading/device_copy.hpp"

#include <dlfcn.h>

namespace headrace {
namespace {

constexpr unsigned NON_BLOCKING = 1;  // CU_STREAM_NON_BLOCKING: no implicit synchronization with MLX's streams

}  // namespace

template <typename Function>
bool DeviceCopy::find(Function &function, const char *name, std::string &error) {
    function = reinterpret_cast<Function>(dlsym(library_, name));
    if (function == nullptr) error = std::string(name) + " is missing";
    return function != nullptr;
}

DeviceCopy *DeviceCopy::open(const char *library, std::string &error) {
    DeviceCopy *made = new DeviceCopy;
    made->library_ = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    Init init = nullptr;
    DeviceGet get = nullptr;
    ContextRetain retain = nullptr;
    int device = 0, code = 0;
    const char *step = nullptr;
    if (made->library_ == nullptr) {
        const char *reason = dlerror();
        error = reason != nullptr ? reason : "it cannot be opened";
    } else if (made->find(init, "cuInit", error) && made->find(get, "cuDeviceGet", error) &&
               made->find(retain, "cuDevicePrimaryCtxRetain", error) &&
               made->find(made->set_context_, "cuCtxSetCurrent", error) &&
               made->find(made->create_stream_, "cuStreamCreate", error) &&
               made->find(made->wait_stream_, "cuStreamSynchronize", error) &&
               made->find(made->destroy_stream_, "cuStreamDestroy_v2", error) &&
               made->find(made->copy_, "cuMemcpyAsync", error) &&
               made->find(made->register_, "cuMemHostRegister_v2", error) &&
               made->find(made->unregister_, "cuMemHostUnregister", error)) {
        if ((code = init(0)) != 0) step = "cuInit";
        else if ((code = get(&device, 0)) != 0) step = "cuDeviceGet";
        else if ((code = retain(&made->context_, device)) != 0) step = "cuDevicePrimaryCtxRetain";
        if (step != nullptr) error = std::string(step) + " failed with code " + std::to_string(code);
    }
    if (error.empty()) return made;
    delete made;
    return nullptr;
}

// The library stays open: MLX uses it, too.
DeviceCopy::~DeviceCopy() = default;

int DeviceCopy::attach(Scratch &scratch) {
    int code = set_context_(context_);
    if (code == 0) code = create_stream_(&scratch.stream, NON_BLOCKING);
    if (code == 0) code = register_(scratch.data, scratch.size, 0);
    return code;
}

void DeviceCopy::detach(Scratch &scratch) {
    unregister_(scratch.data);
    if (scratch.stream != nullptr) destroy_stream_(scratch.stream);
    scratch.stream = nullptr;
}

int DeviceCopy::copy(std::uint8_t *into, const std::uint8_t *from, std::size_t size, const Scratch &scratch) {
    return copy_(reinterpret_cast<std::uint64_t>(into), reinterpret_cast<std::uint64_t>(from), size, scratch.stream);
}

int DeviceCopy::finish(const Scratch &scratch) { return wait_stream_(scratch.stream); }

}  // namespace headrace
