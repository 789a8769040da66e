// SPDX-License-Identifier: Apache-2.0
// The child function "script": one rank that does what its parent says, line by line, and answers each line with
// "ok<tab>milliseconds<tab>text" or "error<tab>milliseconds<tab>kind<tab>message". See commands() for what it can do.
#include "epjit/error.hpp"
#include "host/driver/device.hpp"
#include "host/exchange/communicator_state.hpp"
#include "tests/gpu/environment.hpp"
#include "tests/multi_gpu/child.hpp"
#include "tests/multi_gpu/fixed_layer.hpp"
#include "tests/multi_gpu/foreign_kernel.hpp"
#include "tests/multi_gpu/rendezvous.hpp"
#include "tools/run/layer.hpp"

#include <fmt/format.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <unistd.h>

namespace epjit::tests {
namespace {

/// "word word name=value name=value".
struct command_line {
    explicit command_line(const std::string& text) {
        std::istringstream in(text);
        for (std::string word; in >> word;) {
            const std::size_t equals = word.find('=');
            if (equals == std::string::npos) {
                words.push_back(word);
            } else {
                values[word.substr(0, equals)] = word.substr(equals + 1);
            }
        }
    }
    [[nodiscard]] std::string word(std::size_t i) const { return i < words.size() ? words[i] : "0"; }
    [[nodiscard]] std::string text(const std::string& name, const std::string& otherwise) const {
        const auto found = values.find(name);
        return found != values.end() ? found->second : otherwise;
    }
    [[nodiscard]] std::int32_t number(const std::string& name, std::int32_t otherwise) const {
        return std::stoi(text(name, std::to_string(otherwise)));
    }

    std::vector<std::string> words;
    std::map<std::string, std::string> values;
};

template <class Enum>
Enum value_of(const command_line& c, const char* name, Enum otherwise) {
    const auto found = c.values.find(name);
    if (found == c.values.end()) {
        return otherwise;
    }
    const auto value = parse<Enum>(found->second);
    if (!value) {
        throw std::runtime_error(fmt::format("{}={}", name, found->second));
    }
    return *value;
}

struct scripted_layer {
    tools::reference::problem job;
    std::unique_ptr<tools::memory_space> memory;
    std::optional<tools::layer> layer;
    exchange* on = nullptr;
    const plan* current = nullptr;  ///< the layer's
};

class script {
   public:
    std::string run(const command_line& c) {
        const std::string name = c.word(0);
        if (name == "connect") {
            return connect();
        }
        if (name == "exchange") {
            return make_exchange(c);
        }
        if (name == "drop_exchange") {
            const auto found = exchanges_.find(c.word(1));
            if (found != exchanges_.end()) {
                std::erase_if(layers_, [&](const auto& l) { return l.second.on == found->second.get(); });
                exchanges_.erase(found);
            }
            return "";
        }
        if (name == "layer") {
            return make_layer(c);
        }
        if (name == "use_lent") {
            const tensor_view view = lent_.at(c.word(1)).get();
            return fmt::format("rows={} columns={}", view.rows, view.columns);
        }
        if (name == "drop_layer") {
            layers_.erase(c.word(1));
            return "";
        }
        if (name == "pattern") {
            return fill_pattern(static_cast<std::size_t>(c.number("bytes", 1 << 20)));
        }
        if (name == "verify_pattern") {
            return verify_pattern();
        }
        if (name == "occupy") {
            occupied_ = occupy(world_->comm().state().context, rt_.state(), c.number("free_sms", 8),
                               std::chrono::milliseconds(c.number("ms", 1000)));
            return "";
        }
        if (name == "occupied") {
            occupied_.reset();  // waits
            return "";
        }
        if (name == "free_memory") {
            return std::to_string(free_device_memory(*world_));
        }
        if (name == "barrier") {
            world_->barrier();
            return "";
        }
        if (name == "exit") {
            ::_exit(0);
        }
        if (name == "crash") {
            ::raise(SIGSEGV);
        }
        return on_layer(name, c);
    }

   private:
    std::string connect() {
        world_.reset();
        if (std::getenv("EPJIT_TEST_HOST_WORLD") != nullptr) {
            world_ = std::move(make_rendezvous(rt_, 1)[0]);
        } else {
            world_ = make_real_world(rt_, communicator::from_launcher(rt_));
        }
        return std::to_string(world_->rank());
    }

    static fixed_shape shape_of(const command_line& c) {
        fixed_shape s;
        s.hidden = c.number("hidden", s.hidden);
        s.experts = c.number("experts", s.experts);
        s.topk = c.number("topk", s.topk);
        s.tokens = c.number("tokens", s.tokens);
        s.layout = value_of(c, "layout", s.layout);
        s.mode = value_of(c, "mode", s.mode);
        s.reduction = value_of(c, "reduction", s.reduction);
        return s;
    }

    std::string make_exchange(const command_line& c) {
        const exchange_kind kind = value_of(c, "kind", exchange_kind::automatic);
        const fixed_shape s = shape_of(c);
        const tools::reference::problem p = make_fixed(s, world_->ranks(), 1);
        exchange_config config = tools::config_of(p, kind, c.number("lanes", 1));
        config.max_tokens_per_rank = c.number("max_tokens", 64);
        config.window_rows = c.number("window_rows", 0);
        config.staging_bytes = c.number("staging_bytes", 0);
        config.ll_max_tokens_per_rank = c.number("ll_max_tokens_per_rank", 0);
        config.halves = c.number("halves", 0) != 0;
        auto made = std::make_unique<exchange>(world_->make_exchange(config));
        made->prepare();
        exchanges_[c.word(1)] = std::move(made);
        return "";
    }

    std::string make_layer(const command_line& c) {
        scripted_layer& l = layers_[c.word(1)];
        l.layer.reset();
        l.job = make_fixed(shape_of(c), world_->ranks(), static_cast<std::uint64_t>(c.number("seed", 1)));
        if (const std::int32_t bad = c.number("bad_ids_of_rank", -1); bad >= 0) {
            // The first id of the first token.
            auto& routing = l.job.inputs[static_cast<std::size_t>(bad)].routing;
            const std::int64_t id = 1'000'000;
            std::memcpy(routing.data(), &id, sizeof id);
        }
        if (const std::int32_t more = c.number("more_tokens_on_rank", -1); more >= 0) {
            auto& in = l.job.inputs[static_cast<std::size_t>(more)];
            // Beyond the bound; what they hold does not matter.
            const std::int32_t tokens = in.tokens + c.number("more", 100);
            in.routing.resize(in.routing.size() / static_cast<std::size_t>(in.tokens) *
                              static_cast<std::size_t>(tokens));
            in.input.resize(in.input.size() / static_cast<std::size_t>(in.tokens) * static_cast<std::size_t>(tokens));
            in.weights.resize(in.weights.size() / static_cast<std::size_t>(in.tokens) *
                              static_cast<std::size_t>(tokens));
            in.tokens = tokens;
        }
        if (l.memory == nullptr) {
            l.memory = world_->make_memory();  // kept by a layer made anew: the stream of a lane's last call must live
        }
        tools::layer_options o;
        o.experts_in_place = true;
        o.lane = c.number("lane", 0);
        o.token_bound = c.number("token_bound", 0);
        o.into_window = c.number("window", 0) != 0;
        o.follows_plan = true;
        l.on = exchanges_.at(c.text("on", "0")).get();
        o.after_plan = [&l](plan& made) { l.current = &made; };
        l.layer.emplace(*l.on, *l.memory, l.job, o);
        l.layer->upload();
        return "";
    }

    std::string on_layer(const std::string& name, const command_line& c) {
        const auto found = layers_.find(c.word(1));
        if (found == layers_.end()) {
            throw std::runtime_error(fmt::format("'{}': no such command or no layer '{}'", name, c.word(1)));
        }
        scripted_layer& l = found->second;
        tools::layer& layer = *l.layer;
        if (name == "plan") {
            layer.make_plan();
        } else if (name == "dispatch") {
            layer.dispatch();
        } else if (name == "dispatch_send") {
            layer.dispatch_send();
        } else if (name == "dispatch_receive") {
            layer.dispatch_receive();
        } else if (name == "experts") {
            layer.run_experts();
        } else if (name == "combine") {
            layer.combine();
        } else if (name == "combine_send") {
            layer.combine_send();
        } else if (name == "combine_receive") {
            layer.combine_receive();
        } else if (name == "sync") {
            l.memory->synchronize();
        } else if (name == "look") {
            l.on->check();
        } else if (name == "whole") {
            layer.make_plan();
            layer.dispatch();
            layer.run_experts();
            layer.combine();
        } else if (name == "lend") {
            // The rows that came from the next rank.
            lent_[c.word(2)] = l.on->lend_rows(*l.current, 0, (world_->rank() + 1) % world_->ranks());
        } else if (name == "record") {
            layer.record_graph(c.number("layers", 1));
        } else if (name == "replay") {
            layer.replay();
        } else if (name == "check") {
            const tools::reference::observation seen = layer.finish();
            const std::string wrong = compare_with_oracle(l.job, seen);
            if (!wrong.empty()) {
                throw std::runtime_error("wrong result: " + wrong);
            }
            return fmt::format("bad_ids={}", seen.bad_ids);
        } else {
            throw std::runtime_error("no command " + name);
        }
        return "";
    }

    std::string fill_pattern(std::size_t bytes) {
        const host::shared_context& context = world_->comm().state().context;
        pattern_.emplace_back(context, bytes);
        host::fill_bytes(context, pattern_.back().data(), 0x5c, bytes, nullptr);
        host::synchronize(context, nullptr);
        return "";
    }

    std::string verify_pattern() {
        const host::shared_context& context = world_->comm().state().context;
        for (const host::device_buffer& buffer : pattern_) {
            const auto seen = host::to_host<unsigned char>(context, buffer.data(), buffer.bytes());
            for (std::size_t i = 0; i < seen.size(); ++i) {
                if (seen[i] != 0x5c) {
                    throw std::runtime_error(
                        fmt::format("byte {} of {} was overwritten with 0x{:02x}", i, seen.size(), seen[i]));
                }
            }
        }
        return std::to_string(pattern_.size());
    }

    runtime rt_;
    std::unique_ptr<rank_world> world_;
    std::vector<host::device_buffer> pattern_;
    std::map<std::string, std::unique_ptr<exchange>> exchanges_;
    std::map<std::string, scripted_layer> layers_;
    std::map<std::string, lent_view> lent_;
    std::unique_ptr<occupation> occupied_;
};

/// A layer of loopback: this process is still of use.
void run_loopback() {
    runtime rt;
    communicator comm = communicator::loopback(rt, 2);
    const tools::reference::problem p = make_fixed({}, 2, 3);
    exchange ex(comm, tools::config_of(p, exchange_kind::loopback));
    const auto memory = tools::make_memory_space(comm);
    const std::string wrong = compare_with_oracle(p, tools::run_problem(ex, *memory, p));
    if (!wrong.empty()) {
        throw std::runtime_error(wrong);
    }
}

int script_child(child_io& io) {
    script s;
    while (const auto line = io.receive()) {
        const command_line c(*line);
        const auto start = std::chrono::steady_clock::now();
        const auto ms = [&] {
            return std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() - start)
                .count();
        };
        std::string answer;
        try {
            std::string text;
            if (c.word(0) == "loopback") {
                run_loopback();
            } else if (c.word(0) == "sleep") {
                ::usleep(static_cast<useconds_t>(c.number("ms", 1)) * 1000);
            } else {
                text = s.run(c);
            }
            answer = fmt::format("ok\t{}\t{}", ms(), escape(text));
        } catch (const error& e) {
            answer = fmt::format("error\t{}\t{}\t{}", ms(), name(e.kind()), escape(e.what()));
        } catch (const std::exception& e) {
            answer = fmt::format("error\t{}\texception\t{}", ms(), escape(e.what()));
        }
        if (!io.send(answer)) {
            return 1;
        }
    }
    return 0;
}
const register_child registered("script", script_child);

}  // namespace
}  // namespace epjit::tests
