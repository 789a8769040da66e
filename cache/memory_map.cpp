// SPDX-License-Identifier: Apache-2.0
#include "cache/memory_map.hpp"

namespace epjit::cache::detail {

memory_map::memory_map() {
    tables_.push_back(std::make_unique<table>(64));
    current_.store(tables_.back().get(), std::memory_order_release);
}

const memory_map::value* memory_map::find(const jit::digest& key, const jit::digest* compiler) const noexcept {
    const table& t = *current_.load(std::memory_order_acquire);
    const std::size_t mask = t.slots.size() - 1;
    for (std::size_t at = jit::digest_hash{}(key)&mask;; at = (at + 1) & mask) {
        const value* node = t.slots[at].load(std::memory_order_acquire);
        if (node == nullptr) {
            return nullptr;
        }
        if ((*node)->key == key && (compiler == nullptr || (*node)->compiler.id == *compiler)) {
            return node;
        }
    }
}

void memory_map::place(table& t, const value* node) noexcept {
    const std::size_t mask = t.slots.size() - 1;
    std::size_t at = jit::digest_hash{}((*node)->key) & mask;
    while (t.slots[at].load(std::memory_order_relaxed) != nullptr) {
        at = (at + 1) & mask;
    }
    t.slots[at].store(node, std::memory_order_release);
}

memory_map::value memory_map::insert(value v) {
    const std::scoped_lock lock(mutex_);
    if (const value* there = find(v->key, &v->compiler.id)) {
        return *there;
    }
    nodes_.push_back(std::make_unique<const value>(std::move(v)));
    if (2 * nodes_.size() > tables_.back()->slots.size()) {
        auto larger = std::make_unique<table>(2 * tables_.back()->slots.size());
        for (const auto& node : nodes_) {
            place(*larger, node.get());
        }
        tables_.push_back(std::move(larger));
        current_.store(tables_.back().get(), std::memory_order_release);
    } else {
        place(*tables_.back(), nodes_.back().get());
    }
    return *nodes_.back();
}

}  // namespace epjit::cache::detail
