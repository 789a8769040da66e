// SPDX-License-Identifier: Apache-2.0
#include "host/report/exchange_probe.hpp"

#include "epjit/error.hpp"
#include "host/driver/device.hpp"
#include "host/exchange/exchange_state.hpp"
#include "host/exchange/validate.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <random>
#include <span>

namespace epjit::host {
namespace {

using bytes = std::vector<std::byte>;

constexpr std::int32_t probe_tokens = 8;
constexpr std::int32_t max_reference_ranks = 64;
constexpr int num_replays = 2;
constexpr unsigned char poison = 0xa5;

/// What one rank brings to a step.
struct rank_case {
    std::int32_t tokens = 0;
    std::int64_t capacity = 0;
    bytes routing, input, input_scales, rows;  ///< rows: given to combine, whatever dispatch delivered
    std::vector<float> weights;
};

/// What one rank gets from it.
struct rank_result {
    std::int32_t num_rows = 0;
    bytes rows, scales, row_source, combined;
};

/// Where a rank's tensors lie, on either side.
struct rank_memory {
    void *routing = nullptr, *input = nullptr, *input_scales = nullptr, *combine_rows = nullptr;
    void *rows = nullptr, *scales = nullptr, *row_source = nullptr, *combined = nullptr;
    float* weights = nullptr;
};

/// A finite value of moderate size, so that no sum depends on how a NaN is written.
void draw_element(dtype type, std::mt19937_64& random, std::byte* to) {
    const std::uint64_t bits = random();
    const auto mantissa = static_cast<std::uint32_t>(bits);
    const auto sign = static_cast<std::uint32_t>(bits >> 63), power = static_cast<std::uint32_t>(bits >> 40 & 3);
    const auto put = [to](auto value) { std::memcpy(to, &value, sizeof value); };
    switch (type) {
        case dtype::bf16: return put(static_cast<std::uint16_t>(sign << 15 | (126 + power) << 7 | (mantissa & 0x7f)));
        case dtype::fp16: return put(static_cast<std::uint16_t>(sign << 15 | (14 + power) << 10 | (mantissa & 0x3ff)));
        case dtype::f32: return put(sign << 31 | (126 + power) << 23 | (mantissa & 0x7fffff));
        case dtype::fp8_e4m3: return put(static_cast<std::uint8_t>(sign << 7 | (6 + power) << 3 | (mantissa & 7)));
    }
}

bytes draw_rows(dtype type, std::int64_t elements, std::mt19937_64& random) {
    const auto size = static_cast<std::size_t>(size_of(type));
    bytes rows(static_cast<std::size_t>(elements) * size);
    for (std::size_t at = 0; at < rows.size(); at += size) {
        draw_element(type, random, rows.data() + at);
    }
    return rows;
}

class exchange_probe final : public readiness_probe {
   public:
    explicit exchange_probe(exchange& ex) : exchange_(ex), state_(ex.state()), config_(state_.config) {}

    ~exchange_probe() override {
        capture_.reset();
        try {
            if (stream_.get() != nullptr) {
                stream_.synchronize();  // before the memory goes
            }
        } catch (const std::exception&) {
            // What failed on the stream was reported where it was waited for.
        }
    }
    exchange_probe(const exchange_probe&) = delete;
    exchange_probe& operator=(const exchange_probe&) = delete;

    void prepare() override {
        refuse();
        tokens_ = std::min(probe_tokens, config_.config.max_tokens_per_rank);
        options_.mode = mode::fixed;
        options_.ids = id_type::i32;
        options_.token_bound = tokens_;
        reference_config_ = config_;
        reference_config_.num_driven = config_.num_ranks;
        reference_config_.first_driven = 0;
        reference_config_.config.kind = exchange_kind::host;
        reference_config_.config.memory = {};
        stream_ = gpu_stream(context());
        exchange_.prepare();
        draw(0);
        make_device_memory();
        upload();
        enqueue();  // the first step waits, allocates and compiles what later ones must not
        stream_.synchronize();
    }

    void capture() override {
        capture_.emplace(context(), stream_.get());
        enqueue();
    }
    void instantiate() override {
        graph_ = capture_->end();
        capture_.reset();
    }
    void replay() override {
        for (int i = 0; i < num_replays; ++i) {
            draw(static_cast<std::uint64_t>(i) + 1);
            upload();
            graph_.launch(stream_.get());
            stream_.synchronize();
            steps_.push_back({cases_, fetch()});
        }
    }
    std::string verify() override {
        for (std::size_t i = 0; i < steps_.size(); ++i) {
            const std::vector<rank_result> expected = reference(steps_[i].cases);
            for (std::size_t d = 0; d < steps_[i].results.size(); ++d) {
                const std::size_t rank = static_cast<std::size_t>(config_.first_driven) + d;
                if (const char* what = difference(steps_[i].results[d], expected[rank])) {
                    return fmt::format("{} of rank {} in replay {} differ from the host exchange's", what, rank, i + 1);
                }
            }
        }
        return steps_.size() == num_replays ? "" : "fewer replays than were asked for";
    }

   private:
    struct step {
        std::vector<rank_case> cases;
        std::vector<rank_result> results;
    };

    [[nodiscard]] const shared_context& context() const { return state_.comm->context; }
    [[nodiscard]] std::int64_t groups() const { return (config_.config.hidden + 127) / 128; }

    void refuse() const {
        if (state_.kind == exchange_kind::host || context() == nullptr) {
            throw unsupported_error("the host exchange has no streams to capture");
        }
        if (config_.num_ranks > max_reference_ranks) {
            throw unsupported_error(
                fmt::format("{} ranks: results are verified for {} at most", config_.num_ranks, max_reference_ranks));
        }
        if (config_.config.max_tokens_per_rank == 0) {
            throw unsupported_error("max_tokens_per_rank is 0: there is nothing to replay");
        }
    }

    void draw_routing(rank_case& c, std::mt19937_64& random) const {
        const exchange_config& o = config_.config;
        const bool sparse = o.routing == routing_form::sparse;
        const std::int32_t targets = o.routing == routing_form::slots ? config_.placement.num_slots : o.num_experts;
        const auto columns = static_cast<std::size_t>(sparse ? targets : o.topk);
        c.weights.resize(static_cast<std::size_t>(c.tokens) * columns);
        for (float& weight : c.weights) {
            weight = static_cast<float>(random() >> 44) * 0x1p-20F;
        }
        std::vector<std::int32_t> order(static_cast<std::size_t>(targets));
        std::vector<std::int32_t> ids;
        c.routing.assign(sparse ? static_cast<std::size_t>(c.tokens) * columns : 0, std::byte{0});
        for (std::size_t t = 0; t < static_cast<std::size_t>(c.tokens); ++t) {
            for (std::size_t i = 0; i < order.size(); ++i) {
                order[i] = static_cast<std::int32_t>(i);
            }
            for (std::size_t k = 0; k < static_cast<std::size_t>(o.topk); ++k) {
                const std::size_t left = order.size() - k;
                std::swap(order[k], order[k + random() % left]);
                const bool dropped = random() % 8 == 0;
                if (sparse) {
                    c.routing[t * columns + static_cast<std::size_t>(order[k])] = std::byte{!dropped};
                } else {
                    ids.push_back(dropped ? -1 : order[k]);
                }
            }
        }
        if (!sparse) {
            c.routing.resize(ids.size() * sizeof ids[0]);
            std::memcpy(c.routing.data(), ids.data(), c.routing.size());
        }
    }

    /// The same on every rank.
    void draw(std::uint64_t seed) {
        const exchange_config& o = config_.config;
        cases_.assign(static_cast<std::size_t>(config_.num_ranks), {});
        for (std::int32_t rank = 0; rank < config_.num_ranks; ++rank) {
            std::mt19937_64 random(seed * 1000 + static_cast<std::uint64_t>(rank));
            rank_case& c = cases_[static_cast<std::size_t>(rank)];
            c.tokens = std::max(1, tokens_ - rank % 3);
            c.capacity = worst_case_rows(reference_config_, rank, options_);
            draw_routing(c, random);
            c.input = draw_rows(o.input_type, std::int64_t{c.tokens} * o.hidden, random);
            c.rows = draw_rows(o.combine_type, c.capacity * o.hidden, random);
            if (o.input_type == dtype::fp8_e4m3 && o.scales != scale_type::none) {
                c.input_scales.resize(static_cast<std::size_t>(c.tokens * groups() * size_of(o.scales)));
                // Powers of two: 0x7f and its like as ue8m0, bytes of 1.0 and 2.0 as f32.
                for (std::size_t i = 0; i < c.input_scales.size(); i += static_cast<std::size_t>(size_of(o.scales))) {
                    if (o.scales == scale_type::ue8m0) {
                        c.input_scales[i] = static_cast<std::byte>(126 + random() % 3);
                    } else {
                        const float scale = random() % 2 == 0 ? 1.0F : 2.0F;
                        std::memcpy(c.input_scales.data() + i, &scale, sizeof scale);
                    }
                }
            }
        }
    }

    [[nodiscard]] std::size_t rows_bytes(const rank_case& c) const {
        return static_cast<std::size_t>(c.capacity * config_.config.hidden * size_of(config_.config.dispatch_type));
    }
    [[nodiscard]] std::size_t scales_bytes(const rank_case& c) const {
        return static_cast<std::size_t>(c.capacity * groups() * size_of(config_.config.scales));
    }
    [[nodiscard]] std::size_t combined_bytes(const rank_case& c) const {
        return static_cast<std::size_t>(std::int64_t{c.tokens} * config_.config.hidden *
                                        size_of(config_.config.combine_type));
    }

    void make_device_memory() {
        const auto take = [this](std::size_t size) { return buffers_.emplace_back(context(), size).data(); };
        for (std::int32_t d = 0; d < config_.num_driven; ++d) {
            const rank_case& c = cases_[static_cast<std::size_t>(config_.first_driven + d)];
            rank_memory m;
            m.routing = take(c.routing.size());
            m.input = take(c.input.size());
            m.input_scales = take(c.input_scales.size());
            m.combine_rows = take(c.rows.size());
            m.weights = static_cast<float*>(take(c.weights.size() * sizeof(float)));
            m.rows = take(rows_bytes(c));
            m.scales = take(scales_bytes(c));
            m.row_source = take(static_cast<std::size_t>(c.capacity) * 8);
            m.combined = take(combined_bytes(c));
            memory_.push_back(m);
        }
    }

    void upload() {
        const auto put = [this](void* to, const void* from, std::size_t size) {
            if (size != 0) {
                copy_to_device(context(), to, from, size, stream_.get());
            }
        };
        const auto spoil = [this](void* to, std::size_t size) {
            if (size != 0) {
                fill_bytes(context(), to, poison, size, stream_.get());
            }
        };
        for (std::size_t d = 0; d < memory_.size(); ++d) {
            const rank_case& c = cases_[static_cast<std::size_t>(config_.first_driven) + d];
            const rank_memory& m = memory_[d];
            put(m.routing, c.routing.data(), c.routing.size());
            put(m.input, c.input.data(), c.input.size());
            put(m.input_scales, c.input_scales.data(), c.input_scales.size());
            put(m.combine_rows, c.rows.data(), c.rows.size());
            put(m.weights, c.weights.data(), c.weights.size() * sizeof(float));
            spoil(m.rows, rows_bytes(c));
            spoil(m.scales, scales_bytes(c));
            spoil(m.row_source, static_cast<std::size_t>(c.capacity) * 8);
            spoil(m.combined, combined_bytes(c));
        }
        stream_.synchronize();
    }

    [[nodiscard]] tensor_view view_of(void* data, dtype type, std::int64_t rows) const {
        tensor_view v;
        v.data = data;
        v.type = type;
        v.rows = rows;
        v.columns = config_.config.hidden;
        return v;
    }

    [[nodiscard]] plan_args plan_of(const rank_case& c, const rank_memory& m) const {
        return {m.routing, c.tokens, static_cast<std::int32_t>(c.capacity)};
    }
    [[nodiscard]] dispatch_args dispatch_of(const rank_case& c, const rank_memory& m) const {
        const exchange_config& o = config_.config;
        dispatch_args a;
        a.input = view_of(m.input, o.input_type, c.tokens);
        if (!c.input_scales.empty()) {
            a.input.scales = m.input_scales;
            a.input.scale = o.scales;
        }
        a.output = view_of(m.rows, o.dispatch_type, c.capacity);
        if (o.scales != scale_type::none) {
            a.output.scales = m.scales;
            a.output.scale = o.scales;
        }
        a.row_source = static_cast<std::int32_t*>(m.row_source);
        return a;
    }
    [[nodiscard]] combine_args combine_of(const rank_case& c, const rank_memory& m) const {
        combine_args a;
        a.rows = view_of(m.combine_rows, config_.config.combine_type, c.capacity);
        a.weights = m.weights;
        a.output = view_of(m.combined, config_.config.combine_type, c.tokens);
        return a;
    }

    /// One step on the stream; the plan's memory stays where it is.
    void enqueue() {
        std::vector<plan_args> plans;
        std::vector<dispatch_args> dispatches;
        std::vector<combine_args> combines;
        for (std::size_t d = 0; d < memory_.size(); ++d) {
            const rank_case& c = cases_[static_cast<std::size_t>(config_.first_driven) + d];
            plans.push_back(plan_of(c, memory_[d]));
            dispatches.push_back(dispatch_of(c, memory_[d]));
            combines.push_back(combine_of(c, memory_[d]));
        }
        plan_ = exchange_.make_plan(plans, options_, stream_.get(), std::move(plan_));
        exchange_.dispatch(plan_, dispatches, {}, stream_.get());
        exchange_.combine(plan_, combines, {}, stream_.get());
    }

    std::vector<rank_result> fetch() {
        std::vector<rank_result> results;
        for (std::size_t d = 0; d < memory_.size(); ++d) {
            const rank_case& c = cases_[static_cast<std::size_t>(config_.first_driven) + d];
            const rank_memory& m = memory_[d];
            const auto get = [this](const void* from, std::size_t size) {
                return size == 0 ? bytes{} : to_host<std::byte>(context(), from, size, stream_.get());
            };
            rank_result r;
            r.num_rows =
                to_host<std::int32_t>(context(), plan_.view(static_cast<int>(d)).num_rows, 1, stream_.get())[0];
            r.rows = get(m.rows, rows_bytes(c));
            r.scales = get(m.scales, scales_bytes(c));
            r.row_source = get(m.row_source, static_cast<std::size_t>(c.capacity) * 8);
            r.combined = get(m.combined, combined_bytes(c));
            results.push_back(std::move(r));
        }
        return results;
    }

    /// The same step of all ranks on the CPU.
    std::vector<rank_result> reference(std::vector<rank_case>& cases) {
        std::vector<rank_result> results(cases.size());
        std::vector<plan_args> plans;
        std::vector<dispatch_args> dispatches;
        std::vector<combine_args> combines;
        for (std::size_t rank = 0; rank < cases.size(); ++rank) {
            rank_case& c = cases[rank];
            rank_result& r = results[rank];
            r.rows.resize(rows_bytes(c));
            r.scales.resize(scales_bytes(c));
            r.row_source.resize(static_cast<std::size_t>(c.capacity) * 8);
            r.combined.resize(combined_bytes(c));
            rank_memory m;
            m.routing = c.routing.data();
            m.input = c.input.data();
            m.input_scales = c.input_scales.data();
            m.combine_rows = c.rows.data();
            m.weights = c.weights.data();
            m.rows = r.rows.data();
            m.scales = r.scales.data();
            m.row_source = r.row_source.data();
            m.combined = r.combined.data();
            plans.push_back(plan_of(c, m));
            dispatches.push_back(dispatch_of(c, m));
            combines.push_back(combine_of(c, m));
        }
        const std::unique_ptr<backend> cpu = make_cpu_backend(reference_config_);
        const std::unique_ptr<plan_state> p = cpu->make_plan(plans, options_, nullptr, nullptr);
        p->options = options_;
        p->ranks = plans;
        cpu->dispatch_send(*p, dispatches, {}, nullptr);
        cpu->dispatch_receive(*p, dispatches, {}, nullptr);
        cpu->combine_send(*p, combines, {}, nullptr);
        cpu->combine_receive(*p, combines, {}, nullptr);
        for (std::size_t rank = 0; rank < results.size(); ++rank) {
            results[rank].num_rows = *p->view(static_cast<int>(rank)).num_rows;
        }
        return results;
    }

    /// What differs, or null. Rows beyond the data are unspecified.
    [[nodiscard]] const char* difference(const rank_result& seen, const rank_result& expected) const {
        if (seen.num_rows != expected.num_rows) {
            return "the numbers of rows";
        }
        const auto rows = static_cast<std::int64_t>(expected.num_rows);
        const auto same = [](const bytes& a, const bytes& b, std::int64_t size) {
            return std::memcmp(a.data(), b.data(), static_cast<std::size_t>(size)) == 0;
        };
        const exchange_config& o = config_.config;
        if (!same(seen.row_source, expected.row_source, rows * 8)) {
            return "the sources of rows";
        }
        if (!same(seen.rows, expected.rows, rows * o.hidden * size_of(o.dispatch_type))) {
            return "the dispatched rows";
        }
        if (!same(seen.scales, expected.scales, rows * groups() * size_of(o.scales))) {
            return "the scales";
        }
        return seen.combined == expected.combined ? nullptr : "the combined rows";
    }

    exchange& exchange_;
    exchange_state& state_;
    const resolved_config& config_;
    resolved_config reference_config_;
    std::int32_t tokens_ = 0;
    plan_options options_;
    gpu_stream stream_;
    std::vector<rank_case> cases_;
    std::vector<device_buffer> buffers_;
    std::vector<rank_memory> memory_;
    plan plan_;
    std::optional<stream_capture> capture_;
    gpu_graph graph_;
    std::vector<step> steps_;
};

}  // namespace

std::unique_ptr<readiness_probe> make_exchange_probe(exchange& ex) {
    return std::make_unique<exchange_probe>(ex);
}

}  // namespace epjit::host

namespace epjit {

readiness prove_readiness(exchange& ex, blocker_visitor visitor, void* user) {
    if (ex.kind() == exchange_kind::automatic) {
        throw config_error("the exchange was moved from", "use the object that it was moved to");
    }
    const auto probe = host::make_exchange_probe(ex);
    const host::readiness_record record = host::run_probe(std::string(name(ex.kind())), *probe);
    if (visitor != nullptr) {
        for (const host::blocker& b : host::blockers_of(record)) {
            visitor(user, b.id, b.where, b.why);
        }
    }
    return record.seen;
}

}  // namespace epjit
