// SPDX-License-Identifier: Apache-2.0
#include "host/nccl/compare.hpp"

#include "epjit/error.hpp"
#include "epjit/jit/hash.hpp"
#include "host/nccl/communicator.hpp"

#include <fmt/format.h>

#include <cstring>
#include <span>

namespace epjit::host {
namespace {

constexpr std::size_t max_fields = 32;  ///< what ranks exchange has this size whatever the version
constexpr std::size_t text_bytes = 48;

struct wire_field {
    std::uint64_t value;
    char text[text_bytes];
};
static_assert(sizeof(wire_field) == 56);

template <class T>
std::uint64_t digest_of(std::span<const T> values) {
    const auto* bytes = reinterpret_cast<const char*>(values.data());
    const std::string hex =
        jit::field_hasher().add(std::string_view(bytes, values.size_bytes())).finish().hex().substr(0, 16);
    return std::stoull(hex, nullptr, 16);
}

config_field number(const char* name, std::int64_t value) {
    return {name, static_cast<std::uint64_t>(value), fmt::format("{}", value)};
}

template <class Enum>
config_field choice(const char* name, Enum value) {
    return {name, static_cast<std::uint64_t>(value), std::string(epjit::name(value))};
}

config_field table(const char* name, std::uint64_t digest) {
    return {name, digest, fmt::format("a table with digest {:016x}", digest)};
}

}  // namespace

std::vector<config_field> config_fields(const resolved_config& config) {
    const exchange_config& c = config.config;
    const std::string_view version = runtime::version();
    return {
        {"library version", digest_of(std::span<const char>(version)), std::string(version)},
        choice("kind", c.kind),
        number("hidden", c.hidden),
        number("num_experts", c.num_experts),
        number("topk", c.topk),
        number("max_tokens_per_rank", c.max_tokens_per_rank),
        number("ll_max_tokens_per_rank", c.ll_max_tokens_per_rank),
        choice("routing", c.routing),
        choice("input_type", c.input_type),
        choice("dispatch_type", c.dispatch_type),
        choice("scales", c.scales),
        choice("combine_type", c.combine_type),
        number("placement.num_slots", config.placement.num_slots),
        table("placement.slot_expert", digest_of(std::span<const std::int32_t>(config.placement.slot_expert))),
        table("placement.rank_slots", digest_of(std::span<const std::int32_t>(config.placement.rank_first))),
        table("rank_hosts", digest_of(std::span<const std::int32_t>(config.rank_hosts))),
        number("backward", c.backward ? 1 : 0),
        number("lanes", c.lanes),
        number("num_sms", c.num_sms),
        number("expansion_sms", c.expansion_sms),
        number("window_rows", c.window_rows),
        number("staging_bytes", c.staging_bytes),
        number("halves", c.halves ? 1 : 0),
        table("knobs", digest_of(std::span(&config.knobs, 1))),
    };
}

void compare_fields(nccl_communicator& comm, std::span<const config_field> fields) {
    std::vector<wire_field> mine(max_fields, wire_field{});
    for (std::size_t i = 0; i < fields.size() && i < max_fields; ++i) {
        mine[i].value = fields[i].value;
        fields[i].text.copy(mine[i].text, text_bytes - 1);
    }
    const auto num_ranks = static_cast<std::size_t>(comm.size());
    std::vector<wire_field> all(max_fields * num_ranks);
    comm.all_gather_host(mine.data(), all.data(), max_fields * sizeof(wire_field));
    for (std::size_t i = 0; i < fields.size(); ++i) {
        for (std::size_t r = 1; r < num_ranks; ++r) {
            const wire_field& first = all[i];
            const wire_field& other = all[r * max_fields + i];
            if (first.value != other.value) {
                throw config_error(fmt::format("exchange_config differs between ranks: {} is {} on rank 0 and {} on "
                                               "rank {}",
                                               fields[i].name, first.text, other.text, r),
                                   "give every rank the same config");
            }
        }
    }
}

void compare_configs(nccl_communicator& comm, const resolved_config& config) {
    compare_fields(comm, config_fields(config));
}

}  // namespace epjit::host
