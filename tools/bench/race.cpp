// SPDX-License-Identifier: Apache-2.0
#include "tools/bench/race.hpp"

#include <algorithm>

namespace epjit::tools {

race_result race(std::size_t count, const race_options& options,
                 const std::function<std::optional<double>(std::size_t, int)>& measure) {
    race_result result;
    result.entries.resize(count);
    std::vector<std::size_t> running(count);
    for (std::size_t i = 0; i < count; ++i) {
        running[i] = i;
    }
    std::vector<std::optional<double>> settled(count);  // of the last round that all of it were in
    for (int repeats = options.first_repeats; result.complete; repeats = std::min(2 * repeats, options.most_repeats)) {
        std::vector<std::optional<double>> us(count);
        for (const std::size_t i : running) {
            const bool first = i == 0 && repeats == options.first_repeats;
            if (!first && options.out_of_time && options.out_of_time()) {
                result.complete = false;
                break;
            }
            us[i] = measure(i, repeats);
            race_entry& entry = result.entries[i];
            entry.us = us[i] ? us[i] : entry.us;
            entry.repeats = repeats;
            entry.refused = !us[i];
        }
        if (!result.complete && repeats != options.first_repeats) {
            break;  // a round that not all were in compares nothing
        }
        settled = us;
        std::erase_if(running, [&](std::size_t i) { return !us[i]; });
        std::stable_sort(running.begin(), running.end(), [&](std::size_t a, std::size_t b) { return *us[a] < *us[b]; });
        if (running.size() <= 2 || repeats >= options.most_repeats) {
            break;
        }
        const bool first_runs = us[0].has_value();
        running.resize((running.size() + 1) / 2);
        if (first_runs && std::find(running.begin(), running.end(), 0U) == running.end()) {
            running.back() = 0;
        }
    }
    const auto better = [&](std::size_t a, std::size_t b) {
        return settled[b] && (!settled[a] || *settled[b] < *settled[a]);
    };
    for (std::size_t i = 1; i < count; ++i) {
        result.winner = better(result.winner, i) ? i : result.winner;
    }
    if (settled[0] && *settled[result.winner] > *settled[0] * (1 - options.margin)) {
        result.winner = 0;
    }
    return result;
}

}  // namespace epjit::tools
