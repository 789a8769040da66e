// SPDX-License-Identifier: Apache-2.0
#include "tools/bench/tuner.hpp"

#include <algorithm>

namespace epjit::tools {
namespace {

class candidate_list {
   public:
    /// The first knob takes all its values under each value of the second; 0 is the cost model's.
    void cross(std::int32_t jit::knobs::*first, std::vector<std::int32_t> firsts, std::int32_t jit::knobs::*second,
               std::vector<std::int32_t> seconds) {
        for (const std::int32_t b : seconds) {
            for (const std::int32_t a : firsts) {
                jit::knobs k;
                k.*first = a;
                k.*second = b;
                add(k);
            }
        }
    }
    void each(std::int32_t jit::knobs::*knob, const std::vector<std::int32_t>& values, std::int32_t not_this = 0) {
        for (const std::int32_t v : values) {
            jit::knobs k;
            k.*knob = v;
            if (v != not_this) {
                add(k);
            }
        }
    }
    std::vector<jit::knobs> take() { return std::move(list_); }

   private:
    void add(const jit::knobs& k) {
        if (std::find(list_.begin(), list_.end(), k) == list_.end()) {
            list_.push_back(k);
        }
    }
    std::vector<jit::knobs> list_{jit::knobs{}};
};

/// Values whose ring holds two rows a warp.
std::vector<std::int32_t> movers_for(std::int32_t stages) {
    std::vector<std::int32_t> movers;
    for (const std::int32_t m : {1, 2, 3, 4, 6, 8, 12}) {
        if (2 * m <= stages) {
            movers.push_back(m);
        }
    }
    return movers;
}

/// Values that leave a team of a combine two rows on their way and two for sums.
std::vector<std::int32_t> teams_for(std::int32_t stages) {
    std::vector<std::int32_t> teams;
    for (const std::int32_t t : {1, 2, 3, 4, 6}) {
        if (4 * t <= stages) {
            teams.push_back(t);
        }
    }
    return teams;
}

std::vector<std::int32_t> fewer_than(std::int32_t stages) {
    std::vector<std::int32_t> fewer;
    for (const std::int32_t s : {6, 8, 10, 12, 14, 18, 24, 36}) {
        if (s < stages) {
            fewer.push_back(s);
        }
    }
    return fewer;
}

/// Half the elements of a row for each thread, where blocks may be that large.
std::vector<std::int32_t> twice(std::int32_t threads) {
    return threads <= 256 ? std::vector{2 * threads} : std::vector<std::int32_t>{};
}

}  // namespace

const char* name(tuned_job job) noexcept {
    return job == tuned_job::dispatch ? "dispatch" : "combine";
}

std::vector<jit::knobs> exchange_candidates(tuned_job job, std::int32_t stages, std::int32_t threads) {
    candidate_list list;
    if (job == tuned_job::combine) {
        list.each(&jit::knobs::combine_senders_percent, {0, 25, 30, 40, 45, 50, 60});
        if (stages != 0) {
            list.each(&jit::knobs::combine_teams, teams_for(stages));
            list.each(&jit::knobs::combine_stages, fewer_than(stages));
            list.each(&jit::knobs::combine_threads, twice(threads));
        } else {
            list.each(&jit::knobs::combine_threads, {64, 96, 128, 192, 224, 256, 320, 448}, threads);
        }
        list.each(&jit::knobs::combine_launches, {2});
        return list.take();
    }
    list.cross(&jit::knobs::dispatch_senders, {0, 8, 12, 16, 24, 48, 64}, &jit::knobs::dispatch_chunk, {0, 1, 2, 4, 8});
    list.each(&jit::knobs::dispatch_movers, movers_for(stages));
    list.each(&jit::knobs::dispatch_launches, {2});
    return list.take();
}

std::vector<jit::knobs> local_candidates(tuned_job job, std::int32_t stages, std::int32_t threads) {
    candidate_list list;
    if (job == tuned_job::combine) {
        list.each(&jit::knobs::gather_threads, {32, 64, 96, 128, 160, 192, 224, 256, 320, 384}, threads);
        return list.take();
    }
    std::vector<std::int32_t> fewer{0};
    for (const std::int32_t s : {6, 10, 14, 24, 36}) {
        if (s < stages) {
            fewer.push_back(s);
        }
    }
    std::vector<std::int32_t> movers{0};
    for (const std::int32_t m : movers_for(stages)) {
        movers.push_back(m);
    }
    list.cross(&jit::knobs::scatter_stages, fewer, &jit::knobs::scatter_movers, movers);
    return list.take();
}

}  // namespace epjit::tools
