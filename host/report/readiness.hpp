// SPDX-License-Identifier: Apache-2.0
// The stages between an exchange and a step that may be replayed from a graph, and what stands in the way.
#pragma once

#include "epjit/readiness.hpp"

#include <string>
#include <vector>

namespace epjit::host {

/// What stands between this machine and replaying captured steps (design contract 12).
struct blocker {
    std::string id;     ///< stable, "no_gpu"
    std::string where;  ///< the part concerned, "driver"
    std::string why;
};

/// What was seen of one exchange.
struct readiness_record {
    std::string where;  ///< "loopback"
    readiness seen;
    std::string failure;  ///< of the stage that failed
};

/// One exchange's way through the stages. Each call throws what went wrong.
class readiness_probe {
   public:
    virtual ~readiness_probe() = default;
    virtual void prepare() = 0;
    virtual void capture() = 0;
    virtual void instantiate() = 0;
    virtual void replay() = 0;
    /// What differs from the expected result; empty when nothing does.
    virtual std::string verify() = 0;
};

/// Goes through the stages until one fails. Never throws.
readiness_record run_probe(std::string where, readiness_probe& probe) noexcept;

/// A blocker for each of the four pieces of evidence that is missing, in order. Empty only when the record is ready.
std::vector<blocker> blockers_of(const readiness_record& record);

}  // namespace epjit::host
