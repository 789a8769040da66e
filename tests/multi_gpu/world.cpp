// SPDX-License-Identifier: Apache-2.0
#include "tests/multi_gpu/world.hpp"

#include "host/driver/device.hpp"
#include "host/exchange/communicator_state.hpp"
#include "host/nccl/communicator.hpp"

#include <algorithm>
#include <utility>

namespace epjit::tests {
namespace {

/// What a communicator makes by itself.
class plain_world final : public rank_world {
   public:
    plain_world(runtime& rt, communicator comm, std::int32_t most_sms = 0)
        : rt_(rt), comm_(std::move(comm)), most_sms_(most_sms) {}
    [[nodiscard]] runtime& rt() override { return rt_; }
    [[nodiscard]] communicator& comm() override { return comm_; }
    [[nodiscard]] bool on_gpu() const override { return comm_.state().context != nullptr; }
    exchange make_exchange(const exchange_config& config) override {
        if (most_sms_ == 0) {
            return exchange(comm_, config);
        }
        exchange_config bounded = config;
        bounded.num_sms = config.num_sms > 0 ? std::min(config.num_sms, most_sms_) : most_sms_;
        bounded.expansion_sms = 0;
        exchange made(comm_, bounded);
        // Loading a kernel waits for those that run on the GPU, a peer's too.
        made.prepare();
        barrier();
        return made;
    }
    std::unique_ptr<tools::memory_space> make_memory() override { return tools::make_memory_space(comm_); }
    void barrier() override {
        if (comm_.state().nccl != nullptr) {
            comm_.state().nccl->barrier_host();
        }
    }

   private:
    runtime& rt_;
    communicator comm_;
    const std::int32_t most_sms_;
};

}  // namespace

std::unique_ptr<rank_world> make_real_world(runtime& rt, communicator comm, std::int32_t most_sms) {
    return std::make_unique<plain_world>(rt, std::move(comm), most_sms);
}

std::unique_ptr<rank_world> make_whole_world(runtime& rt, communicator comm) {
    return std::make_unique<plain_world>(rt, std::move(comm));
}

std::size_t free_device_memory(rank_world& world) {
    const host::shared_context& context = world.comm().state().context;
    if (context == nullptr) {
        return 0;
    }
    context->synchronize();
    const host::scoped_context current(*context);
    std::size_t available = 0;
    std::size_t total = 0;
    context->api().check(context->api().memory_info(&available, &total), "cuMemGetInfo");
    return available;
}

}  // namespace epjit::tests
