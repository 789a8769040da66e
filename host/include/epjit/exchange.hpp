// SPDX-License-Identifier: Apache-2.0
// The durable object that moves rows, and the plans it makes.
//
// Collective calls (plan, dispatch, combine and their halves) are issued by every rank in the same order and take one
// argument struct per driven rank, in rank order. Everything asynchronous takes the stream last and orders itself on
// it. Memory is the caller's; sizes come from the queries. Calls of one lane are ordered across streams, but not across
// the border of a graph's capture: the caller orders replays after what came before, and what comes after behind them.
#pragma once

#include "epjit/communicator.hpp"
#include "epjit/export.hpp"
#include "epjit/lent_view.hpp"
#include "epjit/types.hpp"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace epjit {

namespace host {
struct exchange_state;
struct plan_state;
}  // namespace host

/// Expert slots of every rank. Null tables mean the default: expert e is slot e, slots are contiguous per rank and the
/// first E mod R ranks hold one more. Every logical expert needs at least one slot; a rank may hold none.
struct placement {
    const std::int32_t* slot_expert = nullptr;  ///< [S] logical expert of each slot, slots in (rank, local slot) order
    const std::int32_t* rank_slots = nullptr;   ///< [R] slots of each rank, summing to S
    std::int32_t num_slots = 0;                 ///< S
};

/// Device (or, for host, ordinary) memory from the embedder. Both null: the library allocates.
struct memory_hooks {
    void* (*allocate)(void* user, std::size_t bytes) = nullptr;  ///< at least 256-byte aligned; null on failure
    void (*release)(void* user, void* pointer) = nullptr;
    void* user = nullptr;
};

/// Compared by all ranks at creation; a difference is an error on every rank that names the field.
struct exchange_config {
    std::uint32_t version = 1;
    exchange_kind kind = exchange_kind::automatic;
    std::int32_t hidden = 0;                  ///< H
    std::int32_t num_experts = 0;             ///< E, logical
    std::int32_t topk = 0;                    ///< K
    std::int32_t max_tokens_per_rank = 0;     ///< sizes workspace; exceeding it in a call is an error
    std::int32_t ll_max_tokens_per_rank = 0;  ///< calls bounded by this use the low-latency path where there is one
    routing_form routing = routing_form::dense;
    dtype input_type = dtype::bf16;        ///< of dispatch's input rows
    dtype dispatch_type = dtype::bf16;     ///< of dispatched rows; fp8_e4m3 from wider rows is the fused quantiser
    scale_type scales = scale_type::none;  ///< of fp8 rows
    dtype combine_type = dtype::bf16;      ///< bf16, fp16 or f32: rows given to combine, wire and result
    epjit::placement placement{};
    const std::int32_t* rank_hosts = nullptr;  ///< [R] host of each rank, for reduction::per_host; null: one host
    bool backward = false;                     ///< weight_gradients will be called: prepare() loads its kernel too
    std::int32_t lanes = 1;                    ///< independent sets of workspace and flags: 1 or 2
    std::int32_t num_sms = 0;                  ///< bound on all resident blocks of a call; 0: automatic
    std::int32_t expansion_sms = 0;            ///< lsa, with num_sms: bound on the blocks of a dispatch or combine that
                                     ///< expand rows or finish sums, where they may be more; 0: within num_sms
    std::int32_t window_rows = 0;  ///< rows of each output that window_output() lends; 0: none
    /// lsa: rows and partial sums of a lane travel through one memory. Where that of max_tokens_per_rank tokens would
    /// be more than this, whole calls bring that many fewer tokens at a time, in as many launches as it takes; of each
    /// rank at least one. 0: automatic, about 448 MiB, and never more than two launches a call.
    std::int64_t staging_bytes = 0;
    bool halves = false;  ///< lsa: that memory holds max_tokens_per_rank tokens: halves and lend_rows of any call
    memory_hooks memory{};
};

/// Run-time choices of one plan, equal on every rank.
struct plan_options {
    epjit::mode mode = mode::exact;
    epjit::layout layout = layout::expert_major;
    epjit::overflow overflow = overflow::fail;  ///< static mode
    id_type ids = id_type::i64;
    std::int32_t alignment = 1;    ///< rows; expert_major segments start at multiples of it
    std::int32_t token_bound = 0;  ///< a bound on every rank's T, 0: max_tokens_per_rank
    std::int32_t lane = 0;
    plan_source source = plan_source::automatic;  ///< lsa, sendrecv, dense, hybrid; the others see all routing
};

/// What one driven rank brings to a plan.
struct plan_args {
    const void* routing = nullptr;  ///< device memory (host: ordinary), contiguous: ids [T,K], sparse u8 [T,E]
    std::int32_t num_tokens = 0;    ///< T, 0 allowed
    std::int32_t capacity = 0;      ///< static mode: rows of the outputs (masked: rows per slot, all modes)
    /// [S] or null: load of the experts. To each slot's number the plan adds the tokens of all ranks that want the
    /// slot, before any is dropped for want of capacity: the same on every rank, also on those that hold other slots.
    /// In a graph every replay adds. The caller clears it, on the stream; device memory (host: ordinary).
    std::uint64_t* slot_tokens = nullptr;
};

/// Per driven rank, what a plan says of the rows that rank receives. Pointers are device memory (host: ordinary),
/// owned by the plan.
struct plan_view {
    const std::int32_t* counts = nullptr;   ///< [L] rows of each local slot (flat: rows that want the slot)
    const std::int32_t* offsets = nullptr;  ///< [L+1] first row of each slot, closed (flat: all 0 but the last, = rows)
    const std::int32_t* num_rows = nullptr;     ///< [1] rows of the output: padding included, masked L * capacity
    std::int32_t num_slots = 0;                 ///< L
    std::int64_t rows = -1;                     ///< exact mode: *num_rows, known to the host; static: -1
    const std::int32_t* host_counts = nullptr;  ///< exact mode: [L] on the host
};

/// Input problems that the device met, summed over all ranks, for the plan.
struct plan_status {
    std::uint64_t bad_ids = 0;
    std::uint64_t duplicate_ids = 0;
    std::uint64_t excess_ids = 0;    ///< sparse rows with more than K experts
    std::uint64_t dropped_rows = 0;  ///< over capacity
};

/// Routing made into counts, offsets and row maps. Owns its metadata; may be used for any number of dispatches and
/// combines, forward and backward, until destroyed. Destroy it after the stream's work that uses it.
class EPJIT_API plan {
   public:
    plan() noexcept;
    ~plan();
    plan(plan&&) noexcept;
    plan& operator=(plan&&) noexcept;

    /// Of the driven rank with index `driven` (0 is the communicator's first_driven()).
    [[nodiscard]] plan_view view(int driven) const;
    /// What the device has reported so far; complete once the plan's work is done on the stream. Exact mode: complete.
    [[nodiscard]] plan_status status() const;
    [[nodiscard]] explicit operator bool() const noexcept { return state_ != nullptr; }
    [[nodiscard]] host::plan_state& state() const noexcept { return *state_; }

   private:
    explicit plan(std::unique_ptr<host::plan_state> s) noexcept;
    std::unique_ptr<host::plan_state> state_;
    friend class exchange;
};

struct dispatch_args {
    tensor_view input{};             ///< [T,H]
    const float* weights = nullptr;  ///< [T,K], sparse [T,E]; needed to weigh input rows or to fill the outputs below
    tensor_view output{};            ///< [rows,H]; masked: [L * capacity, H]
    std::int32_t* row_source = nullptr;  ///< [rows,2] (rank, token) or null; -1 beyond the data
    float* row_weights = nullptr;        ///< [rows] or null; 0 beyond the data; expert_major and masked
    std::int32_t* local_ids = nullptr;   ///< flat: [rows,K] local slots that want the row, ascending, then -1; or null
    float* local_weights = nullptr;      ///< flat: [rows,K] beside local_ids; or null
};

struct dispatch_options {
    bool weigh_input = false;  ///< weighting::input: rows are multiplied by their weight (expert_major, masked)
    bool zero_padding = true;  ///< clear alignment padding
    bool zero_tail = false;    ///< clear everything beyond the data up to the capacity
    std::int32_t lane = 0;     ///< the plan's; the stream of the lane's previous call must still exist
    bool into_window = false;  ///< equal on every rank: each output is window_output() of its rank and the lane
    /// A promise of this rank: whatever was enqueued after make_plan was called writes none of the input, the scales
    /// and the weights, and does not use the outputs. Where the dispatch is the lane's first call after its plan, lsa
    /// then begins while the plan is still being made. A router that reads the rows it routes keeps the promise.
    bool follows_plan = false;
};

struct combine_args {
    tensor_view rows{};              ///< [rows,H] from the experts
    const float* weights = nullptr;  ///< [T,K], sparse [T,E]; null: unweighted. Not on flat
    tensor_view output{};            ///< [T,H]; a token with no expert gets zeros
};

struct combine_options {
    epjit::reduction reduction = reduction::per_rank;  ///< `per_row` and weights are refused on flat
    std::int32_t lane = 0;
    /// A promise of every rank: its weights are those that the plan's last dispatch was given. lsa then takes, of few
    /// tokens, the ones that came with the rows, and none travel a second time.
    bool weights_dispatched = false;
};

/// Gradient of the routing weights, [T,K] or sparse [T,E], zero where a token has no expert. Either the experts made
/// per-row gradients (`row_gradients`), or combine applied the weights: then the gradient of weight (t,k) is the dot
/// product of `gradient[t]` and the row the expert produced, in fp32: element h belongs to lane (h / 8) mod 32,
/// ascending h in each lane by fused multiply-add from +0, lanes then added pairwise over distances 16, 8, 4, 2, 1.
struct weight_gradient_args {
    tensor_view rows{};                    ///< [rows,H] what combine was given, or empty
    tensor_view gradient{};                ///< [T,H] gradient of combine's output, or empty
    const float* row_gradients = nullptr;  ///< [rows], or null
    float* output = nullptr;               ///< [T,K] or [T,E]
};

class EPJIT_API exchange {
   public:
    /// Collective. @throws config_error (values and field), unsupported_error (what is not in this version or on this
    /// machine, by name).
    exchange(communicator& comm, const exchange_config& config);
    ~exchange();
    exchange(exchange&&) noexcept;
    exchange& operator=(exchange&&) noexcept;

    /// Compiles, or takes from the cache, and loads everything the exchange may launch; otherwise the first call does.
    /// @throws compile_error, offline_miss_error, library_error, cuda_error.
    void prepare();

    /// Throws what the next call would throw of work that is done: a peer that never came, a failed NCCL call. Costs a
    /// look at host memory. For whoever replays graphs, which call nothing that could say so: after the stream's work.
    /// @throws timeout_error, config_error (ranks made different calls), nccl_error.
    void check() const;

    /// Rows that one rank's output may need for any routing of `token_bound` tokens a rank: R * T * K at most,
    /// padding included (flat: R * T; masked: L * R * T).
    [[nodiscard]] std::int64_t worst_case_rows(int driven, const plan_options& options) const;
    /// Bytes of workspace that the exchange took at creation.
    [[nodiscard]] std::size_t workspace_bytes() const noexcept;

    /// Exact mode: one bounded wait for the counts. Static mode: no wait, no allocation when `reuse` is a plan of this
    /// exchange with the same options (its memory is taken over).
    [[nodiscard]] epjit::plan make_plan(std::span<const plan_args> ranks, const plan_options& options, stream_t stream,
                                        epjit::plan reuse = {});

    /// Memory for a driven rank's dispatched rows, [window_rows,H] and contiguous, scales beside them, that belongs to
    /// the exchange for its whole life; what lies there is the caller's from a dispatch into it up to the lane's next
    /// one with dispatch_options::into_window. It is memory like any other to whoever reads or writes it; to such a
    /// dispatch of lsa it is a window that the peers may store into, so that no row has to be staged and copied. What
    /// still reads the rows belongs on a stream before that dispatch. Other exchanges lend ordinary memory.
    /// @throws config_error (values): window_rows is 0, or an index is out of range.
    [[nodiscard]] tensor_view window_output(int driven, int lane) const;

    void dispatch(const epjit::plan& p, std::span<const dispatch_args> ranks, const dispatch_options& options,
                  stream_t stream);
    /// Halves: between them the caller may do other work; arguments must be the same in both.
    void dispatch_send(const epjit::plan& p, std::span<const dispatch_args> ranks, const dispatch_options& options,
                       stream_t stream);
    void dispatch_receive(const epjit::plan& p, std::span<const dispatch_args> ranks, const dispatch_options& options,
                          stream_t stream);

    /// per_rank: each rank sums its rows of a token in fp32 by ascending slot (multiply-add fused, from +0), rounds
    /// once to combine_type; the owner sums ranks in fp32 ascending and rounds once. per_host: rank partials, rounded,
    /// are summed per host in rank order and rounded, hosts summed in host order. per_row: one fp32 sum over ascending
    /// (rank, slot), rounded once. The same inputs give the same bytes on every exchange.
    void combine(const epjit::plan& p, std::span<const combine_args> ranks, const combine_options& options,
                 stream_t stream);
    void combine_send(const epjit::plan& p, std::span<const combine_args> ranks, const combine_options& options,
                      stream_t stream);
    void combine_receive(const epjit::plan& p, std::span<const combine_args> ranks, const combine_options& options,
                         stream_t stream);

    void weight_gradients(const epjit::plan& p, std::span<const weight_gradient_args> ranks, stream_t stream);

    /// Rows as they came from rank `source` in the dispatch of `p` that was the lane's last call, in memory of the
    /// exchange: no copy, and no call on a device. dense: the source's whole input, row t being token t; else the rows
    /// of its tokens that go to this rank, in the order of tokens. Exact mode: as many as there are; static mode: as
    /// many as there may be. Rows of at least H elements apart. The lane's next dispatch, combine or weight_gradients
    /// makes the view late; work that reads it belongs on a stream before that.
    /// @throws config_error (values), unsupported_error on host and loopback, and of the rank's own rows where they do
    /// not travel.
    [[nodiscard]] lent_view lend_rows(const epjit::plan& p, int driven, int source) const;

    [[nodiscard]] exchange_kind kind() const noexcept;
    [[nodiscard]] const exchange_config& config() const noexcept;
    [[nodiscard]] host::exchange_state& state() const noexcept { return *state_; }

   private:
    std::unique_ptr<host::exchange_state> state_;
};

}  // namespace epjit
