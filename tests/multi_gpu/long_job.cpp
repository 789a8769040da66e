// SPDX-License-Identifier: Apache-2.0
// Prompts so long that a rank's rows take more than 4 GiB: offsets in rows, bytes and elements, and the sizes of what
// travels, leave 32 bits behind. The experts return their input.
#include "tests/multi_gpu/jobs.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

namespace epjit::tests {
namespace {

constexpr std::int32_t topk = 2;
constexpr std::int32_t rank_experts = 2;
constexpr int samples = 400;

/// What one rank brings and gets.
class long_prompt {
   public:
    long_prompt(rank_world& world, const job_settings& settings)
        : world_(world),
          hidden_(world.on_gpu() ? 7168 : 64),
          most_(static_cast<std::int32_t>(settings.iterations)),
          memory_(world.make_memory()),
          random_(settings.seed + static_cast<std::uint64_t>(world.rank())) {
        exchange_config c;
        c.kind = settings.exchange;
        c.hidden = hidden_;
        c.num_experts = rank_experts * world.ranks();
        c.topk = topk;
        c.max_tokens_per_rank = most_;
        exchange_.emplace_back(world.make_exchange(c));
        exchange_[0].prepare();
        upload_ids();
        upload_rows();
        expect_rows();
        output_ = memory_->allocate(expected_.size() * row_bytes());
        source_ = static_cast<std::int32_t*>(memory_->allocate(expected_.size() * 8));
        result_ = memory_->allocate(static_cast<std::size_t>(tokens_of(world.rank())) * row_bytes());
    }

    void run(mode m, job_report& report) {
        memory_->fill(output_, 0xee, expected_.size() * row_bytes());
        memory_->fill(source_, 0xee, expected_.size() * 8);
        memory_->fill(result_, 0xee, static_cast<std::size_t>(tokens_of(world_.rank())) * row_bytes());
        exchange& ex = exchange_[0];
        plan_options options;
        options.mode = m;
        plan_args brought;
        brought.routing = ids_;
        brought.num_tokens = tokens_of(world_.rank());
        brought.capacity = static_cast<std::int32_t>(expected_.size());
        const plan p = ex.make_plan({&brought, 1}, options, memory_->stream());
        dispatch_args d;
        d.input = view(input_, brought.num_tokens);
        d.output = view(output_, static_cast<std::int64_t>(expected_.size()));
        d.row_source = source_;
        ex.dispatch(p, {&d, 1}, {}, memory_->stream());
        combine_args c;
        c.rows = d.output;
        c.output = view(result_, brought.num_tokens);
        ex.combine(p, {&c, 1}, {}, memory_->stream());
        memory_->synchronize();
        check(m, report);
        report.counts["rows"] += expected_.size();
        report.counts["bytes of rows"] += expected_.size() * row_bytes();
        world_.barrier();
    }

   private:
    [[nodiscard]] std::size_t row_bytes() const { return static_cast<std::size_t>(hidden_) * 2; }
    [[nodiscard]] std::int32_t tokens_of(std::int32_t rank) const { return most_ - 3 * rank; }
    [[nodiscard]] tensor_view view(void* data, std::int64_t rows) const {
        tensor_view v;
        v.data = data;
        v.rows = rows;
        v.columns = hidden_;
        return v;
    }
    /// Experts of a token: one on the next rank, and of every 16th one on its own rank too.
    [[nodiscard]] std::int32_t expert_of(std::int32_t rank, std::int32_t token, std::int32_t k) const {
        const std::int32_t holder = k == 0 ? (rank + 1) % world_.ranks() : rank;
        return k == 0 || token % 16 == 0 ? holder * rank_experts + (token / 3 + k) % rank_experts : -1;
    }
    [[nodiscard]] bool doubled(std::int32_t token) const { return token % 16 == 0; }

    void upload_ids() {
        std::vector<std::int64_t> ids;
        for (std::int32_t t = 0; t < tokens_of(world_.rank()); ++t) {
            for (std::int32_t k = 0; k < topk; ++k) {
                ids.push_back(expert_of(world_.rank(), t, k));
            }
        }
        ids_ = memory_->place(std::span<const std::int64_t>(ids));
    }

    /// A token's row, bf16 bits: values in [1, 2), whose doubles are exact; the first say whose it is.
    [[nodiscard]] std::vector<std::uint16_t> row_of(std::int32_t rank, std::int32_t token) const {
        std::vector<std::uint16_t> row(static_cast<std::size_t>(hidden_));
        for (std::size_t h = 0; h < row.size(); ++h) {
            row[h] =
                static_cast<std::uint16_t>(0x3f80U | (static_cast<std::uint32_t>(token % 251 + rank) * 7 + h) % 128);
        }
        for (std::size_t i = 0; i < 3; ++i) {
            row[i] = static_cast<std::uint16_t>(0x3f80U | (static_cast<std::uint32_t>(token) >> 7 * i & 127U));
        }
        return row;
    }

    void upload_rows() {
        const std::int32_t tokens = tokens_of(world_.rank());
        input_ = memory_->allocate(static_cast<std::size_t>(tokens) * row_bytes());
        std::vector<std::uint16_t> block;
        for (std::int32_t first = 0; first < tokens; first += 4096) {
            block.clear();
            for (std::int32_t t = first; t < std::min(tokens, first + 4096); ++t) {
                const std::vector<std::uint16_t> row = row_of(world_.rank(), t);
                block.insert(block.end(), row.begin(), row.end());
            }
            memory_->upload(static_cast<std::byte*>(input_) + static_cast<std::size_t>(first) * row_bytes(),
                            block.data(), block.size() * 2);
        }
    }

    /// In the order of slots, then ranks, then tokens.
    void expect_rows() {
        for (std::int32_t slot = 0; slot < rank_experts; ++slot) {
            const std::int32_t expert = world_.rank() * rank_experts + slot;
            for (std::int32_t r = 0; r < world_.ranks(); ++r) {
                for (std::int32_t t = 0; t < tokens_of(r); ++t) {
                    if (expert_of(r, t, 0) == expert || expert_of(r, t, 1) == expert) {
                        expected_.emplace_back(r, t);
                    }
                }
            }
        }
    }

    void check(mode m, job_report& report) {
        const auto wrong = [&](const std::string& what) {
            report.fail(fmt::format("rank {}, {}: {}", world_.rank(), name(m), what));
        };
        const std::vector<std::int32_t> source = memory_->fetch(source_, expected_.size() * 2);
        for (std::size_t row = 0; row < expected_.size(); ++row) {
            if (source[2 * row] != expected_[row].first || source[2 * row + 1] != expected_[row].second) {
                wrong(fmt::format("row {} is of rank {}, token {}; expected {}, {}", row, source[2 * row],
                                  source[2 * row + 1], expected_[row].first, expected_[row].second));
                return;
            }
        }
        const auto rows = static_cast<std::int64_t>(expected_.size());
        const std::int64_t tokens = tokens_of(world_.rank());
        for (int i = 0; i < samples; ++i) {
            const std::int64_t row = sample(i, rows);
            const auto& [rank, token] = expected_[static_cast<std::size_t>(row)];
            if (fetch_row(output_, row) != row_of(rank, token)) {
                wrong(fmt::format("row {} differs from token {} of rank {}", row, token, rank));
                return;
            }
            const auto own = static_cast<std::int32_t>(sample(i, tokens));
            std::vector<std::uint16_t> sum = row_of(world_.rank(), own);
            for (std::uint16_t& bits : sum) {
                bits = static_cast<std::uint16_t>(bits + (doubled(own) ? 0x80 : 0));
            }
            if (fetch_row(result_, own) != sum) {
                wrong(fmt::format("combined token {} is wrong", own));
                return;
            }
        }
    }
    /// The last ones first.
    std::int64_t sample(int i, std::int64_t size) {
        return i < samples / 2 ? std::max<std::int64_t>(0, size - 1 - i)
                               : static_cast<std::int64_t>(random_() % static_cast<std::uint64_t>(size));
    }
    std::vector<std::uint16_t> fetch_row(const void* rows, std::int64_t row) {
        return memory_->fetch(static_cast<const std::uint16_t*>(rows) + row * hidden_,
                              static_cast<std::size_t>(hidden_));
    }

    rank_world& world_;
    const std::int32_t hidden_, most_;
    std::unique_ptr<tools::memory_space> memory_;
    std::vector<exchange> exchange_;
    std::mt19937_64 random_;
    std::int64_t* ids_ = nullptr;
    void *input_ = nullptr, *output_ = nullptr, *result_ = nullptr;
    std::int32_t* source_ = nullptr;
    std::vector<std::pair<std::int32_t, std::int32_t>> expected_;  ///< rank and token of each row
};

}  // namespace

void long_prompts_job(rank_world& world, const job_settings& settings, job_report& report) {
    long_prompt prompt(world, settings);
    for (const mode m : {mode::exact, mode::fixed}) {
        prompt.run(m, report);
    }
}

}  // namespace epjit::tests
