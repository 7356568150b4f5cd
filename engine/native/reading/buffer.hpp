// Buffer: page-aligned memory that is not initialized.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>

namespace headrace {

class Buffer {
  public:
    Buffer() = default;
    // Empty if there is no memory.
    explicit Buffer(std::size_t size) {
        void *made = nullptr;
        if (posix_memalign(&made, 4096, size) == 0) {
            data_.reset(static_cast<std::uint8_t *>(made));
            size_ = size;
        }
    }
    std::uint8_t *data() const { return data_.get(); }
    std::size_t size() const { return data_ == nullptr ? 0 : size_; }

  private:
    struct Free {
        void operator()(std::uint8_t *memory) const { std::free(memory); }
    };
    std::unique_ptr<std::uint8_t, Free> data_;
    std::size_t size_ = 0;
};

}  // namespace headrace
