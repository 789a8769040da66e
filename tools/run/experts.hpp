// SPDX-License-Identifier: Apache-2.0
// The stand-in experts' parameters, resident where their ranks run: uploaded once, however many layers use them.
#pragma once

#include "epjit/residency.hpp"
#include "tools/reference/expert.hpp"
#include "tools/run/memory.hpp"

#include <cstdint>

namespace epjit::tools {

class resident_experts {
   public:
    /// Scales [L] and biases [L,H] of rank i's slots on rank i's card.
    resident_experts(communicator& comm, const reference::problem& p);

    /// What lies with driven rank `driven`, for experts that compute on the host.
    [[nodiscard]] reference::local_experts fetch(memory_space& memory, int driven) const;
    [[nodiscard]] std::uint64_t uploads() const noexcept { return registry_.uploads(); }

   private:
    resident_registry registry_;
    int scale_ = 0, bias_ = 0;
};

}  // namespace epjit::tools
