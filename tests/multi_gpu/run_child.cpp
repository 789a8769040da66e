// SPDX-License-Identifier: Apache-2.0
// The child function "run": the engine of `epjit run` as one process of a launcher. A line "exchange layout mode
// reduction graph iters dump" is a run; the answer "ok", mismatched and checked rows, what ran; or "error" and its
// kind.
#include "epjit/error.hpp"
#include "tests/multi_gpu/child.hpp"
#include "tests/multi_gpu/run_request.hpp"

#include <fmt/format.h>

#include <sstream>
#include <stdexcept>

namespace epjit::tests {
namespace {

template <class Enum>
Enum read(std::istream& in) {
    std::string word;
    in >> word;
    const auto value = parse<Enum>(word);
    if (!value) {
        throw std::runtime_error(fmt::format("'{}' is no value", word));
    }
    return *value;
}

int run_child(child_io& io) {
    runtime rt;
    while (const auto line = io.receive()) {
        try {
            const tools::run_result r = tools::run_layer(rt, read_run_request(*line));
            io.send(fmt::format("ok\t{}\t{}\t{}\t{}\t{}", r.mismatched_rows, r.checked_rows, name(r.exchange), r.ranks,
                                escape(r.first_mismatch)));
        } catch (const error& e) {
            io.send(fmt::format("error\t{}\t{}", name(e.kind()), escape(e.what())));
        }
    }
    return 0;
}
const register_child registered("run", run_child);

}  // namespace

std::string write_run_request(const tools::run_options& o) {
    return fmt::format("{} {} {} {} {} {} {}", name(o.exchange), name(o.layout), name(o.mode), name(o.reduction),
                       o.graph ? 1 : 0, o.iters, o.dump_dir.empty() ? "-" : o.dump_dir);
}

tools::run_options read_run_request(const std::string& line) {
    std::istringstream in(line);
    tools::run_options o;
    o.model.name = "small";
    o.model.hidden = 256;
    o.model.num_experts = 24;
    o.model.topk = 4;
    o.tokens = 50;
    o.check = true;
    o.exchange = read<exchange_kind>(in);
    o.layout = read<layout>(in);
    o.mode = read<mode>(in);
    o.reduction = read<reduction>(in);
    int graph = 0;
    in >> graph >> o.iters >> o.dump_dir;
    o.graph = graph != 0;
    if (o.dump_dir == "-") {
        o.dump_dir.clear();
    }
    return o;
}

}  // namespace epjit::tests
