// SPDX-License-Identifier: Apache-2.0
#include "tests/multi_gpu/rendezvous.hpp"

#include "host/exchange/communicator_state.hpp"
#include "host/exchange/exchange_state.hpp"

#include <fmt/format.h>

#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <string>
#include <utility>

namespace epjit::tests {
namespace {

/// Where the ranks meet, one call at a time.
class meeting {
   public:
    meeting(int ranks, std::chrono::milliseconds limit) : limit_(limit), brought_(static_cast<std::size_t>(ranks)) {}

    using work = std::function<void(const std::vector<const void*>&)>;

    /// Every rank brings `mine`; the last one's `all` runs once with what each brought, in rank order.
    void meet(int rank, const char* call, const void* mine, const work& all) {
        std::unique_lock lock(mutex_);
        if (broken_ != nullptr) {
            std::rethrow_exception(broken_);
        }
        if (arrived_ == 0) {
            call_ = call;
            results_[round_ % 2] = nullptr;
        } else if (call_ != call) {
            broken_ = std::make_exception_ptr(
                config_error(fmt::format("rank {} called {} where another called {}", rank, call, call_),
                             "make the same calls in the same order on every rank"));
            changed_.notify_all();
            std::rethrow_exception(broken_);
        }
        brought_[static_cast<std::size_t>(rank)] = mine;
        const std::size_t mine_round = round_;
        if (++arrived_ == brought_.size()) {
            try {
                all(brought_);
            } catch (...) {
                results_[round_ % 2] = std::current_exception();
            }
            arrived_ = 0;
            ++round_;
            changed_.notify_all();
        } else if (!changed_.wait_for(lock, limit_, [&] { return round_ != mine_round || broken_ != nullptr; })) {
            broken_ = std::make_exception_ptr(
                timeout_error(fmt::format("rank {} waited {} ms in {} for {} of {} ranks", rank, limit_.count(), call,
                                          brought_.size() - arrived_, brought_.size()),
                              "see that every rank makes the call"));
            changed_.notify_all();
        }
        if (round_ == mine_round && broken_ != nullptr) {
            std::rethrow_exception(broken_);
        }
        // A quick rank may have begun the next round, no more: it needs everyone.
        if (const std::exception_ptr result = results_[mine_round % 2]; result != nullptr) {
            std::rethrow_exception(result);
        }
    }

   private:
    const std::chrono::milliseconds limit_;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::vector<const void*> brought_;
    std::size_t arrived_ = 0;
    std::size_t round_ = 0;
    std::string call_;
    std::exception_ptr results_[2], broken_;
};

/// What the ranks of one exchange share.
struct shared_exchange {
    explicit shared_exchange(std::unique_ptr<exchange> made) : whole(std::move(made)) {}
    std::unique_ptr<exchange> whole;  ///< drives all ranks
};

struct rank_plan final : host::plan_state {
    std::shared_ptr<plan> whole;
    int rank = 0;
    [[nodiscard]] plan_view view(int) const override { return whole->view(rank); }
    [[nodiscard]] plan_status status() const override { return whole->status(); }
};

class rank_backend final : public host::backend {
   public:
    rank_backend(std::shared_ptr<meeting> where, std::shared_ptr<shared_exchange> shared, int rank)
        : where_(std::move(where)), shared_(std::move(shared)), rank_(rank) {}

    void prepare() override {}
    [[nodiscard]] std::size_t workspace_bytes() const noexcept override { return 0; }
    [[nodiscard]] void* lent_window(int, int lane) noexcept override {
        return shared_->whole->window_output(rank_, lane).data;
    }

    std::unique_ptr<host::plan_state> make_plan(std::span<const plan_args> mine, const plan_options& options,
                                                stream_t stream, std::unique_ptr<host::plan_state>) override {
        struct request {
            const plan_args* args;
            std::shared_ptr<plan>* made;
        };
        std::shared_ptr<plan> made;
        const request own{mine.data(), &made};
        where_->meet(rank_, "make_plan", &own, [&](const std::vector<const void*>& all) {
            std::vector<plan_args> args;
            for (const void* brought : all) {
                args.push_back(*static_cast<const request*>(brought)->args);
            }
            const auto whole = std::make_shared<plan>(shared_->whole->make_plan(args, options, stream));
            for (const void* brought : all) {
                *static_cast<const request*>(brought)->made = whole;
            }
        });
        auto p = std::make_unique<rank_plan>();
        p->whole = std::move(made);
        p->rank = rank_;
        return p;
    }
    void dispatch_send(host::plan_state& p, std::span<const dispatch_args> ranks, const dispatch_options& options,
                       stream_t stream) override {
        together<dispatch_args>("dispatch", p, ranks, [&](const plan& whole, std::span<const dispatch_args> all) {
            shared_->whole->dispatch(whole, all, options, stream);
        });
    }
    void dispatch_receive(host::plan_state&, std::span<const dispatch_args>, const dispatch_options&,
                          stream_t) override {}
    void combine_send(host::plan_state& p, std::span<const combine_args> ranks, const combine_options& options,
                      stream_t stream) override {
        together<combine_args>("combine", p, ranks, [&](const plan& whole, std::span<const combine_args> all) {
            shared_->whole->combine(whole, all, options, stream);
        });
    }
    void combine_receive(host::plan_state&, std::span<const combine_args>, const combine_options&, stream_t) override {}
    void weight_gradients(host::plan_state& p, std::span<const weight_gradient_args> ranks, stream_t stream) override {
        together<weight_gradient_args>("weight_gradients", p, ranks,
                                       [&](const plan& whole, std::span<const weight_gradient_args> all) {
                                           shared_->whole->weight_gradients(whole, all, stream);
                                       });
    }

   private:
    template <class Args, class Call>
    void together(const char* name, host::plan_state& p, std::span<const Args> mine, Call call) {
        where_->meet(rank_, name, mine.data(), [&](const std::vector<const void*>& all) {
            std::vector<Args> args;
            for (const void* brought : all) {
                args.push_back(*static_cast<const Args*>(brought));
            }
            call(*static_cast<rank_plan&>(p).whole, std::span<const Args>(args));
        });
    }

    std::shared_ptr<meeting> where_;
    std::shared_ptr<shared_exchange> shared_;
    int rank_;
};

class rendezvous_world final : public rank_world {
   public:
    rendezvous_world(runtime& rt, std::shared_ptr<meeting> where, int rank, int ranks)
        : rt_(rt), where_(std::move(where)), comm_(communicator::host(rt, ranks)) {
        comm_.state().num_driven = 1;
        comm_.state().first_driven = rank;
    }
    [[nodiscard]] runtime& rt() override { return rt_; }
    [[nodiscard]] communicator& comm() override { return comm_; }
    [[nodiscard]] bool on_gpu() const override { return false; }

    exchange make_exchange(const exchange_config& config) override {
        exchange_config host_config = config;
        host_config.kind = exchange_kind::host;
        std::shared_ptr<shared_exchange> shared;
        where_->meet(rank(), "creation", &shared, [&](const std::vector<const void*>& all) {
            communicator everyone = communicator::host(rt_, ranks());
            const auto made = std::make_shared<shared_exchange>(std::make_unique<exchange>(everyone, host_config));
            for (const void* place : all) {
                *static_cast<std::shared_ptr<shared_exchange>*>(const_cast<void*>(place)) = made;
            }
        });
        exchange ex(comm_, host_config);
        ex.state().backend = std::make_unique<rank_backend>(where_, shared, rank());
        ex.state().windows = host::lent_windows(comm_.state(), ex.state().config, *ex.state().backend);
        return ex;
    }
    std::unique_ptr<tools::memory_space> make_memory() override { return tools::make_memory_space(comm_); }
    void barrier() override {
        where_->meet(rank(), "barrier", nullptr, [](const std::vector<const void*>&) {});
    }

   private:
    runtime& rt_;
    std::shared_ptr<meeting> where_;
    communicator comm_;
};

}  // namespace

std::vector<std::unique_ptr<rank_world>> make_rendezvous(runtime& rt, int ranks, std::chrono::milliseconds limit) {
    const auto where = std::make_shared<meeting>(ranks, limit);
    std::vector<std::unique_ptr<rank_world>> worlds;
    for (int rank = 0; rank < ranks; ++rank) {
        worlds.push_back(std::make_unique<rendezvous_world>(rt, where, rank, ranks));
    }
    return worlds;
}

}  // namespace epjit::tests
