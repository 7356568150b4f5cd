// Device copy: bytes from the host into slots on a CUDA device, by its copy engine.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace headrace {

// Memory of one thread for bytes that cannot be read straight to their place.
struct Scratch {
    std::uint8_t *data = nullptr;
    std::size_t size = 0;
    void *stream = nullptr;
};

// The functions of the CUDA driver that are needed, from its shared library, and the device's primary context.
//
// MLX's unified memory on CUDA is managed memory: a write by the host moves a slot's pages to the host, and the next
// computation moves them back, 4 KiB to 2 MiB at a time. The copy engine writes to the pages where they are. (CUDA Driver
// API: cuMemcpyAsync, cuMemHostRegister; addresses of managed memory are valid device addresses.)
class DeviceCopy {
  public:
    // Returns null, and the reason in `error`, if the library or a function fails.
    static DeviceCopy *open(const char *library, std::string &error);
    ~DeviceCopy();
    // Makes the calling thread's stream and page-locks its scratch memory. Returns the driver's code.
    int attach(Scratch &scratch);
    void detach(Scratch &scratch);
    // Queues a copy; `finish` waits for all that were queued on the scratch's stream.
    int copy(std::uint8_t *into, const std::uint8_t *from, std::size_t size, const Scratch &scratch);
    int finish(const Scratch &scratch);

  private:
    DeviceCopy() = default;
    template <typename Function>
    bool find(Function &function, const char *name, std::string &error);
    using Init = int (*)(unsigned);
    using DeviceGet = int (*)(int *, int);
    using ContextRetain = int (*)(void **, int);
    using ContextSet = int (*)(void *);
    using StreamCreate = int (*)(void **, unsigned);
    using StreamWait = int (*)(void *);
    using Copy = int (*)(std::uint64_t, std::uint64_t, std::size_t, void *);
    using Register = int (*)(void *, std::size_t, unsigned);
    using Unregister = int (*)(void *);
    void *library_ = nullptr;
    void *context_ = nullptr;
    ContextSet set_context_ = nullptr;
    StreamCreate create_stream_ = nullptr;
    StreamWait wait_stream_ = nullptr, destroy_stream_ = nullptr;
    Copy copy_ = nullptr;
    Register register_ = nullptr;
    Unregister unregister_ = nullptr;
};

}  // namespace headrace
