// SPDX-License-Identifier: Apache-2.0
// What tuning may change: speed, never results. A knob of 0 is the cost model's.
#pragma once

#include "epjit/jit/spec.hpp"

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace epjit::jit {

struct knobs {
    // Of programs, and so of their keys. A row or a GPU that has no room for a value gets the largest that fits.
    std::int32_t scatter_threads = 0;  ///< of a block that converts or weighs rows on their way
    std::int32_t scatter_stages = 0;   ///< rows in flight of a permute's block
    std::int32_t scatter_movers = 0;   ///< warps that share them
    std::int32_t gather_threads = 0;   ///< of a block that sums rows: unpermute, and combine's halves
    std::int32_t dispatch_stages = 0;  ///< rows in flight of a block of a whole dispatch
    std::int32_t dispatch_movers = 0;  ///< warps that share them
    std::int32_t combine_threads = 0;  ///< of a team of a whole combine, those that sum
    std::int32_t combine_stages = 0;   ///< rows of its block in shared memory
    std::int32_t combine_teams = 0;    ///< that share them
    // Of launches, equal on every rank.
    std::int32_t dispatch_launches = 0;  ///< 1: through windows in one launch; 2: two halves
    std::int32_t dispatch_senders = 0;   ///< most blocks that send, at most half of those that are resident; 0: by
                                         ///< the rows' length
    std::int32_t dispatch_chunk = 0;     ///< tokens a flag; 0: by the number of tokens
    std::int32_t dispatch_follows = 0;   ///< one that promises to follow its plan: 1: begins behind it; 2: beside it,
                                         ///< by what it tells
    std::int32_t window_dispatch = 0;    ///< into window outputs: 1: once per rank; 2: straight to every place
    std::int32_t combine_launches = 0;   ///< as dispatch_launches
    std::int32_t combine_senders_percent = 0;  ///< of the resident blocks, those that send

    friend bool operator==(const knobs&, const knobs&) = default;
    /// Those of programs, or those of launches; zeros for the others.
    [[nodiscard]] knobs of_programs() const noexcept { return part(true); }
    [[nodiscard]] knobs of_launches() const noexcept { return part(false); }
    [[nodiscard]] bool has_programs() const noexcept { return of_programs() != knobs{}; }

   private:
    [[nodiscard]] knobs part(bool of_programs) const noexcept;
};

/// One knob under its name, which is its key in a profile.
struct knob_info {
    std::string_view name;
    std::int32_t knobs::*field;
    std::int32_t least, most, step;
    bool of_program;
};
std::span<const knob_info> knob_infos() noexcept;

/// What launches do where no profile says otherwise: every knob of a launch but dispatch_senders, dispatch_chunk and
/// window_dispatch is set.
knobs cost_model_launches() noexcept;

/// `values` with those of `otherwise` in place of zeros.
knobs filled(knobs values, const knobs& otherwise) noexcept;

/// The spec with the knobs of programs that belong to its kind.
variant_spec with_knobs(variant_spec spec, const knobs& values) noexcept;

/// "dispatch_senders=32 dispatch_chunk=1"; "none" where all are the cost model's.
std::string describe(const knobs& values);

}  // namespace epjit::jit
