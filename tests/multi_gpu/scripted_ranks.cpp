// SPDX-License-Identifier: Apache-2.0
#include "tests/multi_gpu/scripted_ranks.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

namespace epjit::tests {
namespace {

std::string ending_text(int status) {
    return status > 128
               ? fmt::format("its process was ended by signal {} ({})", status - 128, ::strsignal(status - 128))
               : fmt::format("its process ended with status {}", status);
}

}  // namespace

scripted_ranks::scripted_ranks(const rank_setup& setup, const environment_changes& environment) {
    const int port = next_port();
    for (int rank = 0; rank < setup.ranks; ++rank) {
        environment_changes changes = launcher_environment(setup, rank, port);
        for (const auto& change : environment) {
            std::erase_if(changes, [&](const auto& other) { return other.first == change.first; });
            changes.push_back(change);
        }
        children_.emplace_back("script", changes, child_process::errors::kept);
    }
    told_.resize(children_.size());
}

void scripted_ranks::tell(int rank, const std::string& command) {
    told_[static_cast<std::size_t>(rank)] = command;
    child(rank).send(command);
}

answer scripted_ranks::hear(int rank, std::int64_t within_ms) {
    answer a;
    const deadline until = in_ms(within_ms);
    const auto line = child(rank).receive(until);
    if (!line) {
        const auto end = child(rank).ended(std::max(until, in_ms(0)) == until ? in_ms(2'000) : until);
        a.kind = "silent";
        a.text = fmt::format("rank {} in '{}': {}; it said: {}", rank, told_[static_cast<std::size_t>(rank)],
                             end ? ending_text(end->status) : fmt::format("no answer within {} ms", within_ms),
                             child(rank).last_words());
        a.ms = within_ms;
        return a;
    }
    std::vector<std::string> fields = split_fields(*line);
    fields.resize(4);
    a.ok = fields[0] == "ok";
    a.ms = std::atoll(fields[1].c_str());
    a.kind = a.ok ? "" : fields[2];
    a.text = a.ok ? fields[2] : fields[3];
    return a;
}

answer scripted_ranks::ask(int rank, const std::string& command, std::int64_t within_ms) {
    tell(rank, command);
    return hear(rank, within_ms);
}

std::vector<answer> scripted_ranks::ask_all(const std::string& command, std::int64_t within_ms) {
    for (int rank = 0; rank < size(); ++rank) {
        tell(rank, command);
    }
    std::vector<answer> answers;
    for (int rank = 0; rank < size(); ++rank) {
        answers.push_back(hear(rank, within_ms));
    }
    return answers;
}

void scripted_ranks::all(const std::string& command, std::int64_t within_ms) {
    const std::vector<answer> answers = ask_all(command, within_ms);
    for (std::size_t rank = 0; rank < answers.size(); ++rank) {
        EXPECT_TRUE(answers[rank].ok) << "rank " << rank << ", '" << command << "': " << answers[rank].kind << ": "
                                      << answers[rank].text;
    }
}

answer scripted_ranks::first_failure(int rank, std::initializer_list<const char*> commands, std::int64_t within_ms) {
    answer last;
    std::int64_t ms = 0;
    for (const char* command : commands) {
        last = ask(rank, command, within_ms);
        ms += last.ms;
        if (!last.ok) {
            break;
        }
    }
    last.ms = ms;
    return last;
}

answer scripted_ranks::failure_after(const answer& heard, int rank, std::initializer_list<const char*> commands,
                                     std::int64_t within_ms) {
    return heard.ok ? first_failure(rank, commands, within_ms) : heard;
}

}  // namespace epjit::tests
