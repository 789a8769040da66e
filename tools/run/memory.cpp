// SPDX-License-Identifier: Apache-2.0
#include "tools/run/memory.hpp"

#include "epjit/error.hpp"
#include "host/driver/device.hpp"
#include "host/exchange/communicator_state.hpp"

#include <chrono>
#include <cstring>
#include <deque>
#include <new>

namespace epjit::tools {
namespace {

using clock = std::chrono::steady_clock;

class host_space final : public memory_space {
   public:
    void* allocate(std::size_t bytes) override {
        if (bytes == 0) {
            return nullptr;
        }
        void* p = ::operator new (bytes, std::align_val_t{256});
        blocks_.emplace_back(p);
        return p;
    }
    void upload(void* to, const void* from, std::size_t bytes) override { copy(to, from, bytes); }
    void download(void* to, const void* from, std::size_t bytes) override { copy(to, from, bytes); }
    void fill(void* to, unsigned char value, std::size_t bytes) override {
        if (bytes != 0) {
            std::memset(to, value, bytes);
        }
    }
    [[nodiscard]] stream_t stream() const noexcept override { return nullptr; }
    void synchronize() override {}
    void record(const std::function<void()>&) override {
        throw unsupported_error("the host exchange has no graphs: it computes on the CPU when it is called",
                                "leave --graph out, or use an exchange on a GPU");
    }
    void replay() override {}
    std::size_t mark() override {
        marks_.push_back(clock::now());
        return marks_.size() - 1;
    }
    double us_between(std::size_t from, std::size_t to) override {
        return std::chrono::duration<double, std::micro>(marks_[to] - marks_[from]).count();
    }

   private:
    struct aligned_delete {
        void operator()(void* p) const noexcept { ::operator delete (p, std::align_val_t{256}); }
    };
    static void copy(void* to, const void* from, std::size_t bytes) {
        if (bytes != 0) {
            std::memcpy(to, from, bytes);
        }
    }
    std::vector<std::unique_ptr<void, aligned_delete>> blocks_;
    std::vector<clock::time_point> marks_;
};

class device_space final : public memory_space {
   public:
    explicit device_space(host::shared_context context) : context_(std::move(context)), stream_(context_) {}
    ~device_space() override {
        try {
            stream_.synchronize();  // before the memory goes
        } catch (const std::exception&) {
            // The driver is unloading, or a kernel has failed and was reported where it was waited for.
        }
    }
    void* allocate(std::size_t bytes) override { return blocks_.emplace_back(context_, bytes).data(); }
    void upload(void* to, const void* from, std::size_t bytes) override {
        if (bytes != 0) {
            host::copy_to_device(context_, to, from, bytes, stream());
            synchronize();
        }
    }
    void download(void* to, const void* from, std::size_t bytes) override {
        if (bytes != 0) {
            host::copy_to_host(context_, to, from, bytes, stream());
            synchronize();
        }
    }
    void fill(void* to, unsigned char value, std::size_t bytes) override {
        if (bytes != 0) {
            host::fill_bytes(context_, to, value, bytes, stream());
        }
    }
    [[nodiscard]] stream_t stream() const noexcept override { return stream_.get(); }
    void synchronize() override { stream_.synchronize(); }
    void record(const std::function<void()>& work) override {
        host::stream_capture capture(context_, stream());
        recording_ = true;
        try {
            work();
        } catch (...) {
            recording_ = false;
            throw;
        }
        recording_ = false;
        graph_ = capture.end();
    }
    void replay() override { graph_.launch(stream()); }
    std::size_t mark() override {
        events_.emplace_back(context_).record(stream(), recording_);
        return events_.size() - 1;
    }
    double us_between(std::size_t from, std::size_t to) override { return events_[to].us_since(events_[from]); }

   private:
    host::shared_context context_;
    std::deque<host::device_buffer> blocks_;
    std::deque<host::gpu_event> events_;
    host::gpu_graph graph_;
    bool recording_ = false;
    host::gpu_stream stream_;
};

}  // namespace

std::unique_ptr<memory_space> make_memory_space(const communicator& comm) {
    if (comm.kind() == exchange_kind::host) {
        return std::make_unique<host_space>();
    }
    return std::make_unique<device_space>(comm.state().context);
}

}  // namespace epjit::tools
