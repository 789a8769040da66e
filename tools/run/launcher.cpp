// SPDX-License-Identifier: Apache-2.0
#include "tools/run/launcher.hpp"

#include "epjit/error.hpp"

#include <fmt/format.h>

#include <charconv>
#include <cstdlib>
#include <string_view>

namespace epjit::tools {
namespace {

struct launcher_names {
    const char* size;
    const char* rank;
};

constexpr launcher_names known[] = {
    {"WORLD_SIZE", "RANK"},
    {"OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"},
    {"SLURM_STEP_NUM_TASKS", "SLURM_PROCID"},
};

std::int32_t number(const char* variable, std::string_view text, std::int32_t least, std::int32_t most) {
    std::int32_t value = 0;
    const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (failure != std::errc{} || end != text.data() + text.size() || value < least || value > most) {
        throw config_error(fmt::format("{} is '{}', expected a whole number of {} to {}", variable, text, least, most),
                           "start the processes with torchrun, mpirun or srun, or unset it to run alone");
    }
    return value;
}

}  // namespace

std::optional<launcher_place> find_launcher() {
    for (const launcher_names& names : known) {
        const char* size_text = std::getenv(names.size);
        if (size_text == nullptr || *size_text == '\0') {
            continue;
        }
        launcher_place place;
        place.variable = names.size;
        place.size = number(names.size, size_text, 1, 1 << 20);
        if (place.size == 1) {
            return std::nullopt;
        }
        const char* rank_text = std::getenv(names.rank);
        if (rank_text == nullptr || *rank_text == '\0') {
            throw config_error(
                fmt::format("{}={} says that this is one of {} processes, but {} does not say which", names.size,
                            size_text, place.size, names.rank),
                fmt::format("set {} to 0 to {}, or unset {} to run alone", names.rank, place.size - 1, names.size));
        }
        place.rank = number(names.rank, rank_text, 0, place.size - 1);
        return place;
    }
    return std::nullopt;
}

}  // namespace epjit::tools
