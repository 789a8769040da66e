// SPDX-License-Identifier: Apache-2.0
// Which of many ways is the fastest, by successive halving: all are measured a little, the better half again with twice
// the repetitions, and so on. Arithmetic only; what a measurement is, the caller says.
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <vector>

namespace epjit::tools {

struct race_options {
    int first_repeats = 10;
    int most_repeats = 200;
    /// Who beats the first one by less than this stays behind it: medians differ by so much from run to run.
    double margin = 0.01;
    std::function<bool()> out_of_time;  ///< asked before each measurement but those of the first round's first one
};

struct race_entry {
    std::optional<double> us;  ///< of the last round it was in; empty: never measured, or it cannot run
    int repeats = 0;           ///< of that round
    bool refused = false;      ///< it cannot run
};

struct race_result {
    std::size_t winner = 0;
    std::vector<race_entry> entries;  ///< by candidate
    bool complete = true;             ///< false: time ran out before the last round
};

/// `measure(candidate, repeats)`: microseconds, empty where the candidate cannot run. Candidate 0 is what is used
/// without a race: it stays to the last round, and loses only to one that is faster by the margin there. `count` is 1
/// or more.
race_result race(std::size_t count, const race_options& options,
                 const std::function<std::optional<double>(std::size_t candidate, int repeats)>& measure);

}  // namespace epjit::tools
