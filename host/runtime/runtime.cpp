// SPDX-License-Identifier: Apache-2.0
#include "epjit/runtime.hpp"

#include "host/runtime/runtime_state.hpp"

namespace epjit {

runtime::runtime(const runtime_options& options)
    : state_(std::make_shared<host::runtime_state>(host::read_settings(options))) {}
runtime::~runtime() = default;
runtime::runtime(runtime&&) noexcept = default;
runtime& runtime::operator=(runtime&&) noexcept = default;

epjit::counters runtime::counters() const noexcept {
    return state_ != nullptr ? state_->counters() : epjit::counters{};
}

void runtime::visit_launches(launch_visitor visitor, void* user) const {
    if (state_ != nullptr && visitor != nullptr) {
        state_->visit_launches(visitor, user);
    }
}

std::string_view runtime::version() noexcept {
    return EPJIT_VERSION;
}

}  // namespace epjit
