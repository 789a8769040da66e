// SPDX-License-Identifier: Apache-2.0
// The library in C99, for engines in C, Rust, Zig and whatever else calls C. The same objects and the same contracts as
// <epjit/epjit.hpp>; docs/c_interface.md says how to link, what is promised of the ABI, and shows a whole program.
//
// Status. Every call that can fail returns an epjit_status; EPJIT_OK is 0. What went wrong is kept for the calling
// thread: epjit_last_error(). No exception leaves the library. Null handles and null pointers are EPJIT_ERROR_CONFIG.
//
// Structs. Where the first member is struct_size, set it to sizeof the struct. Structs grow at their end only: a
// program compiled against an older header keeps working, what its struct lacks takes the default. A struct larger than
// the library knows is refused with its name. The structs without struct_size (epjit_tensor, epjit_placement,
// epjit_memory_hooks, epjit_rank_group) never change. Structs that have an _init function start there; the others start
// as all zero.
//
// Ownership. Handles are made by the library and given back to the matching _destroy, which accepts null. All
// other memory is the caller's; strings and tables that go in are copied before the call returns. Communicators and
// exchanges share their runtime's state, so the order of destruction is free, except that a plan is destroyed before
// its exchange and after the stream's work that uses it.
//
// Threads. Different handles may be used by different threads at once. Calls on one exchange and its plans are made by
// one thread at a time. Counters may be read at any time by any thread.
//
// Letters. R ranks, E experts, S expert slots over all ranks, L slots of one rank, T tokens of one rank in this call,
// H hidden size, K experts per token. [T,H] is a row-major array.
#ifndef EPJIT_EPJIT_H
#define EPJIT_EPJIT_H

#include <stddef.h>
#include <stdint.h>

#ifndef EPJIT_API
#define EPJIT_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/// A CUDA stream (CUstream, cudaStream_t); null is the context's default stream. The host exchange ignores it.
typedef struct CUstream_st* epjit_stream;
/// ncclComm_t.
typedef struct ncclComm* epjit_nccl_comm;

// ---- enumerations: 32-bit numbers with values that never change
// ------------------------------------------------------

/// What a call reports.
typedef int32_t epjit_status;
enum {
    EPJIT_OK = 0,
    EPJIT_ERROR_INTERNAL = 1,      ///< a broken promise of the library itself, or memory ran out
    EPJIT_ERROR_CONFIG = 2,        ///< bad arguments, bad model config, contradictory options
    EPJIT_ERROR_UNSUPPORTED = 3,   ///< valid, but this build, machine or exchange cannot do it
    EPJIT_ERROR_COMPILE = 4,       ///< NVRTC refused a program
    EPJIT_ERROR_CACHE = 5,         ///< the cache cannot be used as asked
    EPJIT_ERROR_OFFLINE_MISS = 6,  ///< offline, and a kernel is not stored
    EPJIT_ERROR_LIBRARY = 7,       ///< libcuda, libnvrtc or libnccl was not found or lacks a symbol
    EPJIT_ERROR_CUDA = 8,          ///< a driver call failed
    EPJIT_ERROR_NCCL = 9,          ///< an NCCL call failed
    EPJIT_ERROR_TIMEOUT = 10,      ///< a bounded wait ended
    EPJIT_ERROR_CAPACITY = 11,     ///< rows did not fit and EPJIT_OVERFLOW_FAIL was asked for
    EPJIT_ERROR_CANCELLED = 12,
};

/// Element types of rows.
typedef int32_t epjit_dtype;
enum { EPJIT_DTYPE_BF16 = 0, EPJIT_DTYPE_FP16 = 1, EPJIT_DTYPE_F32 = 2, EPJIT_DTYPE_FP8_E4M3 = 3 };

/// Scales of fp8 rows, one for each group of 128 elements, the last group short: ceil(H/128) a row.
typedef int32_t epjit_scale_type;
enum { EPJIT_SCALE_NONE = 0, EPJIT_SCALE_F32 = 1, EPJIT_SCALE_UE8M0 = 2 };

/// Element type of expert ids.
typedef int32_t epjit_id_type;
enum { EPJIT_ID_I16 = 0, EPJIT_ID_I32 = 1, EPJIT_ID_U32 = 2, EPJIT_ID_I64 = 3 };

/// DENSE: ids [T,K] of experts, -1 drops; SPARSE: a u8 map [T,E]; SLOTS: ids [T,K] of expert slots.
typedef int32_t epjit_routing_form;
enum { EPJIT_ROUTING_DENSE = 0, EPJIT_ROUTING_SPARSE = 1, EPJIT_ROUTING_SLOTS = 2 };

/// EXPERT_MAJOR: rows contiguous per slot; FLAT: one row per token and rank; MASKED: [L, capacity, H] and counts.
typedef int32_t epjit_layout;
enum { EPJIT_LAYOUT_EXPERT_MAJOR = 0, EPJIT_LAYOUT_FLAT = 1, EPJIT_LAYOUT_MASKED = 2 };

/// EXACT: the host learns the counts; STATIC: nothing is read back, outputs have the caller's capacity, calls can be
/// captured in a graph.
typedef int32_t epjit_mode;
enum { EPJIT_MODE_EXACT = 0, EPJIT_MODE_STATIC = 1 };

/// Declared order of combine's sum; see epjit_combine.
typedef int32_t epjit_reduction;
enum { EPJIT_REDUCTION_PER_RANK = 0, EPJIT_REDUCTION_PER_HOST = 1, EPJIT_REDUCTION_PER_ROW = 2 };

/// Where routing weights are applied, once.
typedef int32_t epjit_weighting;
enum { EPJIT_WEIGHTING_NONE = 0, EPJIT_WEIGHTING_INPUT = 1, EPJIT_WEIGHTING_EXPERTS = 2, EPJIT_WEIGHTING_COMBINE = 3 };

/// Rows beyond the capacity: an error at the next host call, or the tail is dropped and counted. Memory beyond the
/// capacity is never written.
typedef int32_t epjit_overflow;
enum { EPJIT_OVERFLOW_FAIL = 0, EPJIT_OVERFLOW_DROP = 1 };

/// How the ranks come to a plan. COUNTS: each counts its own tokens and tells the others; GATHERED: every rank's ids go
/// to all, as i16, and each makes the plan of them. The plans are the same. AUTO: gathered where few tokens make it
/// faster.
typedef int32_t epjit_plan_source;
enum { EPJIT_PLAN_SOURCE_AUTO = 0, EPJIT_PLAN_SOURCE_COUNTS = 1, EPJIT_PLAN_SOURCE_GATHERED = 2 };

/// The way rows travel.
typedef int32_t epjit_exchange_kind;
enum {
    EPJIT_EXCHANGE_AUTO = 0,
    EPJIT_EXCHANGE_HOST = 1,
    EPJIT_EXCHANGE_LOOPBACK = 2,
    EPJIT_EXCHANGE_LSA = 3,
    EPJIT_EXCHANGE_SENDRECV = 4,
    EPJIT_EXCHANGE_DENSE = 5,
    EPJIT_EXCHANGE_HYBRID = 6,
};

typedef int32_t epjit_log_level;
enum { EPJIT_LOG_ERROR = 0, EPJIT_LOG_WARN = 1, EPJIT_LOG_INFO = 2, EPJIT_LOG_DEBUG = 3 };

/// Names an enumeration for epjit_name, epjit_parse and epjit_size_of.
typedef int32_t epjit_enumeration;
enum {
    EPJIT_ENUM_STATUS = 0,
    EPJIT_ENUM_DTYPE = 1,
    EPJIT_ENUM_SCALE_TYPE = 2,
    EPJIT_ENUM_ID_TYPE = 3,
    EPJIT_ENUM_ROUTING_FORM = 4,
    EPJIT_ENUM_LAYOUT = 5,
    EPJIT_ENUM_MODE = 6,
    EPJIT_ENUM_REDUCTION = 7,
    EPJIT_ENUM_WEIGHTING = 8,
    EPJIT_ENUM_OVERFLOW = 9,
    EPJIT_ENUM_EXCHANGE_KIND = 10,
    EPJIT_ENUM_LOG_LEVEL = 11,
    EPJIT_ENUM_TENSOR_USE = 12,
    EPJIT_ENUM_RESIDENCE = 13,
    EPJIT_ENUM_READINESS_STAGE = 14,
    EPJIT_ENUM_PLAN_SOURCE = 15,
};

/// The name that the command line, JSON and messages use ("bf16", "static", "config", ...), a constant; "?" when
/// unknown.
EPJIT_API const char* epjit_name(epjit_enumeration enumeration, int32_t value);
/// The value of a name, hyphen and underscore alike. An unknown name or enumeration: EPJIT_ERROR_CONFIG.
EPJIT_API epjit_status epjit_parse(epjit_enumeration enumeration, const char* text, int32_t* value);
/// Bytes of one element (DTYPE), id (ID_TYPE) or scale (SCALE_TYPE; 0 for none); -1 for anything else.
EPJIT_API int64_t epjit_size_of(epjit_enumeration enumeration, int32_t value);
/// The library's version, "0.1.0" in form; a constant.
EPJIT_API const char* epjit_version(void);

// ---- errors ------------------------------------------------------------------------------------------------------

/// The last failure on one thread. Strings are never null; they stay valid until this thread's next failing call.
typedef struct epjit_error {
    uint32_t struct_size;
    epjit_status status;  ///< EPJIT_OK when nothing has failed yet
    int32_t code;         ///< CUresult (CUDA) or ncclResult_t (NCCL), else 0
    uint32_t reserved;
    const char* text;     ///< message and remedy
    const char* message;  ///< what was attempted, with the values
    const char* remedy;   ///< what the user can do; "" where that is nothing
    const char* log;      ///< of a compile error, as are the next two; else ""
    const char* options;
    const char* source;
} epjit_error;

/// Message and remedy of this thread's last failure, "" when there was none. A success leaves it as it is.
EPJIT_API const char* epjit_last_error(void);
/// All of it.
EPJIT_API epjit_status epjit_last_error_detail(epjit_error* out);

// ---- runtime: options, libraries, cache, counters ------------------------------------------------------------------

typedef struct epjit_runtime epjit_runtime;

/// Receives one line without a newline, nul-terminated and valid during the call. Called from any thread, never under a
/// lock of the library, as long as the runtime or anything made from it lives.
typedef void (*epjit_log_callback)(void* user, epjit_log_level level, const char* line);

/// Null strings and negative numbers mean: take the environment variable named beside the member, else its default.
typedef struct epjit_runtime_options {
    uint32_t struct_size;
    int32_t offline;                ///< EPJIT_OFFLINE; -1, 0 or 1
    const char* cache_path;         ///< EPJIT_CACHE_PATH; "" disables the disk
    int64_t cache_max_bytes;        ///< EPJIT_CACHE_MAX_BYTES, 2 GiB
    int64_t cache_max_files;        ///< EPJIT_CACHE_MAX_FILES, 20,000
    int64_t lock_timeout_ms;        ///< EPJIT_LOCK_TIMEOUT_MS, 30,000
    int64_t compile_timeout_ms;     ///< EPJIT_COMPILE_TIMEOUT_MS, 60,000
    int64_t wait_timeout_ms;        ///< EPJIT_WAIT_TIMEOUT_MS, 30,000
    int64_t first_wait_timeout_ms;  ///< EPJIT_FIRST_WAIT_TIMEOUT_MS, 300,000
    const char* template_dir;       ///< EPJIT_TEMPLATE_DIR
    const char* nvrtc_library;      ///< EPJIT_NVRTC_LIBRARY
    const char* nccl_library;       ///< EPJIT_NCCL_LIBRARY
    const char* cuda_library;       ///< EPJIT_CUDA_LIBRARY
    const char* profile;            ///< EPJIT_PROFILE
    const char* exchange;           ///< EPJIT_EXCHANGE
    epjit_log_callback log;         ///< null: stderr
    void* log_user;
    int32_t log_level;  ///< EPJIT_LOG, warn
    int32_t reserved;
} epjit_runtime_options;

/// Outcomes since the runtime was made; on the hot path in static mode they stand still but for `launches`.
typedef struct epjit_counters {
    uint32_t struct_size;
    uint32_t reserved;
    uint64_t allocations;  ///< device and pinned allocations made by the library
    uint64_t compiles;
    uint64_t cache_memory_hits;
    uint64_t cache_disk_hits;
    uint64_t modules_loaded;
    uint64_t uploads;     ///< host-to-device copies of static tables
    uint64_t host_waits;  ///< bounded polls of a pinned counter
    uint64_t launches;
} epjit_counters;

/// Called once for each kernel that was launched; `kernel` is valid during the call.
typedef void (*epjit_launch_visitor)(void* user, const char* kernel, uint64_t launches);

/// Fills `options` with the defaults; `struct_size` is sizeof *options.
EPJIT_API epjit_status epjit_runtime_options_init(epjit_runtime_options* options, size_t struct_size);
/// Opens nothing yet: libraries are loaded when first needed. Null options: the defaults. Bad values:
/// EPJIT_ERROR_CONFIG. A failure leaves null in *out, here and in every call that makes a handle.
EPJIT_API epjit_status epjit_runtime_create(const epjit_runtime_options* options, epjit_runtime** out);
EPJIT_API void epjit_runtime_destroy(epjit_runtime* runtime);
EPJIT_API epjit_status epjit_runtime_counters(const epjit_runtime* runtime, epjit_counters* out);
EPJIT_API epjit_status epjit_runtime_visit_launches(const epjit_runtime* runtime, epjit_launch_visitor visitor,
                                                    void* user);

// ---- communicator: who exchanges -----------------------------------------------------------------------------------

/// Drives the ranks of this thread: all R for host and loopback, one for real ranks. Collective calls take one argument
/// struct per driven rank, in rank order.
typedef struct epjit_communicator epjit_communicator;

typedef struct epjit_communicator_info {
    uint32_t struct_size;
    int32_t num_ranks;         ///< R
    int32_t num_driven;        ///< ranks that this communicator drives
    int32_t first_driven;      ///< the lowest of them; they are consecutive
    epjit_exchange_kind kind;  ///< host, loopback, or auto for NCCL-backed ones
    int32_t reserved;
} epjit_communicator_info;

/// R ranks computed by the CPU in host memory, 1 to 64.
EPJIT_API epjit_status epjit_communicator_host(epjit_runtime* runtime, int32_t ranks, epjit_communicator** out);
/// R virtual ranks on one GPU, 1 to 64; its primary context is retained. EPJIT_ERROR_LIBRARY without a driver.
EPJIT_API epjit_status epjit_communicator_loopback(epjit_runtime* runtime, int32_t ranks, int32_t device,
                                                   epjit_communicator** out);

// Real ranks, through NCCL: one GPU each. Each rank calls, the call ends within first_wait_timeout. EPJIT_ERROR_LIBRARY
// without NCCL or a driver, EPJIT_ERROR_TIMEOUT when a rank is missing.

/// 128 bytes that name a new set of ranks, an ncclUniqueId. One rank makes them and shares them out.
EPJIT_API epjit_status epjit_communicator_unique_id(epjit_runtime* runtime, void* unique_id);
/// Rank `rank` of `ranks`, from the 128 bytes of a unique id that the caller shared out.
EPJIT_API epjit_status epjit_communicator_from_unique_id(epjit_runtime* runtime, const void* unique_id, int32_t rank,
                                                         int32_t ranks, int32_t device, epjit_communicator** out);
/// Works on a child of a borrowed communicator, which stays the caller's, and aborts only what it owns. Collective over
/// `borrowed`. `ranks` [num_ranks] are those of its ranks that take part, in the order of their ranks in the new
/// communicator; null and 0: all. A rank that is not in its own list gets null in *out, and EPJIT_OK. `device` is the
/// borrowed communicator's. EPJIT_ERROR_UNSUPPORTED where NCCL has no ncclCommSplit.
EPJIT_API epjit_status epjit_communicator_from_nccl(epjit_runtime* runtime, epjit_nccl_comm borrowed, int32_t device,
                                                    const int32_t* ranks, uint32_t num_ranks, epjit_communicator** out);
/// From RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT or the Open MPI / Slurm equivalents, on device
/// LOCAL_RANK mod GPUs. EPJIT_ERROR_CONFIG names the variable that is missing or wrong.
EPJIT_API epjit_status epjit_communicator_from_launcher(epjit_runtime* runtime, epjit_communicator** out);
/// All ranks of one process: rank i on devices[i], into out[i]; both have num_ranks elements. They are made together by
/// one thread; afterwards each is used by a thread of its own. A failure leaves null in all of `out`.
EPJIT_API epjit_status epjit_communicator_local(epjit_runtime* runtime, const int32_t* devices, uint32_t num_ranks,
                                                epjit_communicator** out);
EPJIT_API void epjit_communicator_destroy(epjit_communicator* communicator);
EPJIT_API epjit_status epjit_communicator_get_info(const epjit_communicator* communicator,
                                                   epjit_communicator_info* out);

// ---- exchange: the durable object ----------------------------------------------------------------------------------

typedef struct epjit_exchange epjit_exchange;
typedef struct epjit_plan epjit_plan;

/// Rows of caller memory: device memory, for the host exchange ordinary memory. Never changes.
typedef struct epjit_tensor {
    void* data;
    void* scales;      ///< of fp8 rows: [rows, ceil(columns/128)]
    epjit_dtype type;  ///< of data
    epjit_scale_type scale;
    int64_t rows;
    int64_t columns;
    int64_t row_stride;        ///< in elements; 0 means `columns`
    int64_t scale_row_stride;  ///< in scales; 0 means ceil(columns/128)
} epjit_tensor;

/// Expert slots of every rank. Null tables mean the default: expert e is slot e, slots are contiguous per rank and the
/// first E mod R ranks hold one more. Every expert needs a slot; a rank may hold none. Never changes.
typedef struct epjit_placement {
    const int32_t* slot_expert;  ///< [S] expert of each slot, slots in (rank, local slot) order
    const int32_t* rank_slots;   ///< [R] slots of each rank, summing to S
    int32_t num_slots;           ///< S
    int32_t reserved;
} epjit_placement;

/// Memory from the embedder: device memory, for the host exchange ordinary memory. Both null: the library allocates.
/// Never changes. The hooks must not unwind (no exception, no longjmp).
typedef struct epjit_memory_hooks {
    void* (*allocate)(void* user, size_t bytes);  ///< at least 256-byte aligned; null on failure
    void (*release)(void* user, void* pointer);
    void* user;
} epjit_memory_hooks;

/// Compared by all ranks at creation; a difference is an error on every rank that names the member.
typedef struct epjit_exchange_config {
    uint32_t struct_size;
    epjit_exchange_kind kind;
    int32_t hidden;                  ///< H
    int32_t num_experts;             ///< E
    int32_t topk;                    ///< K
    int32_t max_tokens_per_rank;     ///< sizes workspace; exceeding it in a call is an error
    int32_t ll_max_tokens_per_rank;  ///< calls bounded by this use the low-latency path where there is one
    epjit_routing_form routing;
    epjit_dtype input_type;     ///< of dispatch's input rows
    epjit_dtype dispatch_type;  ///< of dispatched rows; FP8_E4M3 from wider rows is the fused quantiser
    epjit_scale_type scales;    ///< of fp8 rows
    epjit_dtype combine_type;   ///< BF16, FP16 or F32: rows given to combine, wire and result
    epjit_placement placement;
    const int32_t* rank_hosts;  ///< [R] host of each rank, for PER_HOST; null: one host
    int32_t backward;           ///< non-zero: epjit_weight_gradients will be called, prepare loads its kernel too
    int32_t lanes;              ///< independent sets of workspace and flags: 1 (default) or 2
    int32_t num_sms;            ///< bound on all resident blocks of a call; 0: automatic
    int32_t halves;             ///< LSA, non-zero: the memory below holds max_tokens_per_rank tokens, for halves
    epjit_memory_hooks memory;
    int64_t staging_bytes;  ///< LSA: bound on a lane's memory for rows on their way, smaller than a call needs: more
                            ///< launches; 0: automatic
    int32_t window_rows;    ///< rows of each output that epjit_exchange_window_output lends; 0: none
    int32_t expansion_sms;  ///< LSA, with num_sms: bound on the blocks of a dispatch or combine that expand rows or
                            ///< finish sums, where they may be more; 0: within num_sms
} epjit_exchange_config;

typedef struct epjit_exchange_info {
    uint32_t struct_size;
    epjit_exchange_kind kind;  ///< what was chosen
    uint64_t workspace_bytes;  ///< taken at creation
} epjit_exchange_info;

/// Run-time choices of one plan, equal on every rank.
typedef struct epjit_plan_options {
    uint32_t struct_size;
    epjit_mode mode;
    epjit_layout layout;
    epjit_overflow overflow;  ///< static mode, and MASKED
    epjit_id_type ids;        ///< default I64
    int32_t alignment;        ///< rows, default 1; EXPERT_MAJOR segments start at multiples of it
    int32_t token_bound;      ///< a bound on every rank's T; 0: max_tokens_per_rank
    int32_t lane;
    epjit_plan_source source;  ///< LSA, SENDRECV, DENSE, HYBRID; the others see all routing
} epjit_plan_options;

EPJIT_API epjit_status epjit_exchange_config_init(epjit_exchange_config* config, size_t struct_size);
EPJIT_API epjit_status epjit_plan_options_init(epjit_plan_options* options, size_t struct_size);

/// Collective. EPJIT_ERROR_CONFIG names member and value, EPJIT_ERROR_UNSUPPORTED what is missing.
EPJIT_API epjit_status epjit_exchange_create(epjit_communicator* communicator, const epjit_exchange_config* config,
                                             epjit_exchange** out);
EPJIT_API void epjit_exchange_destroy(epjit_exchange* exchange);
/// Compiles, or takes from the cache, and loads everything the exchange may launch; otherwise the first call does.
EPJIT_API epjit_status epjit_exchange_prepare(epjit_exchange* exchange);
/// Reports what the next call would report of work that is done: a peer that never came, ranks that made different
/// calls, a failed NCCL call. Costs a look at host memory. For whoever replays graphs, which call nothing that could
/// say so: after the stream's work.
EPJIT_API epjit_status epjit_exchange_check(const epjit_exchange* exchange);
EPJIT_API epjit_status epjit_exchange_get_info(const epjit_exchange* exchange, epjit_exchange_info* out);
/// The config with its defaults resolved; the tables belong to the exchange.
EPJIT_API epjit_status epjit_exchange_get_config(const epjit_exchange* exchange, epjit_exchange_config* out);
/// Rows that one driven rank's output may need for any routing of `token_bound` tokens a rank, padding included:
/// R * T * min(K, L) at most (FLAT: R * T; MASKED: L * R * T). Null options: the defaults.
EPJIT_API epjit_status epjit_exchange_worst_case_rows(const epjit_exchange* exchange, int32_t driven,
                                                      const epjit_plan_options* options, int64_t* rows);

/// Memory for a driven rank's dispatched rows, [window_rows,H] and contiguous, scales beside them; it belongs to the
/// exchange for its whole life. What lies there is the caller's from a dispatch into it up to the lane's next one with
/// into_window. LSA: a window that the peers may store into, so that no row is staged and copied; what still reads the
/// rows belongs on a stream before that dispatch. Other exchanges lend ordinary memory.
EPJIT_API epjit_status epjit_exchange_window_output(const epjit_exchange* exchange, int32_t driven, int32_t lane,
                                                    epjit_tensor* out);

// ---- plan: one routing made into counts, offsets and row maps ------------------------------------------------------

/// What one driven rank brings to a plan.
typedef struct epjit_plan_args {
    uint32_t struct_size;
    int32_t num_tokens;   ///< T, 0 allowed
    const void* routing;  ///< device memory (host: ordinary), contiguous: ids [T,K], sparse u8 [T,E]
    int32_t capacity;     ///< static mode: rows of the outputs (MASKED: rows per slot, in both modes)
    int32_t reserved;
    /// [S] or null: load of the experts. To each slot's number the plan adds the tokens of all ranks that want the
    /// slot, before any is dropped for want of capacity; the same on every rank. In a graph every replay adds. The
    /// caller clears it, on the stream.
    uint64_t* slot_tokens;
} epjit_plan_args;

/// Per driven rank, what a plan says of the rows it receives. Pointers are device memory (host: ordinary), owned by
/// the plan.
typedef struct epjit_plan_view {
    uint32_t struct_size;
    int32_t num_slots;           ///< L
    const int32_t* counts;       ///< [L] rows of each local slot (FLAT: rows that want the slot)
    const int32_t* offsets;      ///< [L+1] first row of each slot, closed (FLAT: all 0 but the last, = rows)
    const int32_t* num_rows;     ///< [1] rows of the output: padding included, MASKED L * capacity
    const int32_t* host_counts;  ///< exact mode: [L] on the host
    int64_t rows;                ///< exact mode: *num_rows, known to the host; static: -1
} epjit_plan_view;

/// Input problems that the device met, summed over all ranks.
typedef struct epjit_plan_status {
    uint32_t struct_size;
    uint32_t reserved;
    uint64_t bad_ids;
    uint64_t duplicate_ids;
    uint64_t excess_ids;    ///< sparse rows with more than K experts
    uint64_t dropped_rows;  ///< over capacity
} epjit_plan_status;

/// Collective; one `ranks` struct per driven rank. *plan is null on entry: a plan is made; or a plan of this exchange,
/// whose memory and handle are used again, without an allocation when the options are the same. Exact mode: one bounded
/// wait for the counts. Static mode: no wait. A failure leaves null where null was; a plan that was to be used again is
/// then empty: it may be made again or destroyed. Null options: the defaults.
EPJIT_API epjit_status epjit_make_plan(epjit_exchange* exchange, const epjit_plan_args* ranks, uint32_t num_ranks,
                                       const epjit_plan_options* options, epjit_stream stream, epjit_plan** plan);
EPJIT_API void epjit_plan_destroy(epjit_plan* plan);
/// Of the driven rank with index `driven` (0 is the communicator's first_driven).
EPJIT_API epjit_status epjit_plan_get_view(const epjit_plan* plan, int32_t driven, epjit_plan_view* out);
/// What the device has reported so far; complete once the plan's work is done on the stream. Exact mode: complete.
EPJIT_API epjit_status epjit_plan_get_status(const epjit_plan* plan, epjit_plan_status* out);

// ---- dispatch, combine, weight gradients: collective, one argument struct per driven rank --------------------------

typedef struct epjit_dispatch_args {
    uint32_t struct_size;
    uint32_t reserved;
    epjit_tensor input;    ///< [T,H]
    const float* weights;  ///< [T,K], sparse [T,E]; needed to weigh input rows or to fill the outputs below
    epjit_tensor output;   ///< [rows,H]; MASKED: [L * capacity, H]
    int32_t* row_source;   ///< [rows,2] (rank, token) or null; -1 beyond the data
    float* row_weights;    ///< [rows] or null; 0 beyond the data; EXPERT_MAJOR and MASKED
    int32_t* local_ids;    ///< FLAT: [rows,K] local slots that want the row, ascending, then -1; or null
    float* local_weights;  ///< FLAT: [rows,K] beside local_ids; or null
} epjit_dispatch_args;

typedef struct epjit_dispatch_options {
    uint32_t struct_size;
    int32_t weigh_input;   ///< non-zero: rows are multiplied by their weight (EXPERT_MAJOR, MASKED)
    int32_t zero_padding;  ///< non-zero (default): clear alignment padding
    int32_t zero_tail;     ///< non-zero: clear everything beyond the data up to the capacity
    int32_t lane;          ///< the plan's; the stream of the lane's previous call must still exist
    int32_t into_window;   ///< non-zero, on every rank: outputs are those of epjit_exchange_window_output
    int32_t follows_plan;  ///< non-zero: nothing after the plan writes the input or weights or uses the outputs
    int32_t reserved;
} epjit_dispatch_options;

typedef struct epjit_combine_args {
    uint32_t struct_size;
    uint32_t reserved;
    epjit_tensor rows;     ///< [rows,H] from the experts
    const float* weights;  ///< [T,K], sparse [T,E]; null: unweighted. Not on FLAT
    epjit_tensor output;   ///< [T,H]; a token with no expert gets zeros
} epjit_combine_args;

typedef struct epjit_combine_options {
    uint32_t struct_size;
    epjit_reduction reduction;
    int32_t lane;
    /// 0 or 1, a promise of every rank: its weights are those that the plan's last dispatch was given. LSA then takes,
    /// of few tokens, the ones that came with the rows, and none travel a second time.
    int32_t weights_dispatched;
} epjit_combine_options;

/// Gradient of the routing weights. Either the experts made per-row gradients (`row_gradients`), or combine applied the
/// weights: then the gradient of weight (t,k) is the dot product of `gradient[t]` and the row the expert produced.
typedef struct epjit_weight_gradient_args {
    uint32_t struct_size;
    uint32_t reserved;
    epjit_tensor rows;           ///< [rows,H] what combine was given, or all zero
    epjit_tensor gradient;       ///< [T,H] gradient of combine's output, or all zero
    const float* row_gradients;  ///< [rows], or null
    float* output;               ///< [T,K] or [T,E]; zero where a token has no expert
} epjit_weight_gradient_args;

EPJIT_API epjit_status epjit_dispatch_options_init(epjit_dispatch_options* options, size_t struct_size);
EPJIT_API epjit_status epjit_combine_options_init(epjit_combine_options* options, size_t struct_size);

/// Token rows to the experts' ranks. Ordered on the stream; pointers stay valid until that work is done. Null options:
/// the defaults, here and below.
EPJIT_API epjit_status epjit_dispatch(epjit_exchange* exchange, const epjit_plan* plan,
                                      const epjit_dispatch_args* ranks, uint32_t num_ranks,
                                      const epjit_dispatch_options* options, epjit_stream stream);
/// Halves: between them the caller may do other work; arguments must be the same in both.
EPJIT_API epjit_status epjit_dispatch_send(epjit_exchange* exchange, const epjit_plan* plan,
                                           const epjit_dispatch_args* ranks, uint32_t num_ranks,
                                           const epjit_dispatch_options* options, epjit_stream stream);
EPJIT_API epjit_status epjit_dispatch_receive(epjit_exchange* exchange, const epjit_plan* plan,
                                              const epjit_dispatch_args* ranks, uint32_t num_ranks,
                                              const epjit_dispatch_options* options, epjit_stream stream);

/// Weighted sums, back in token order. PER_RANK: each rank sums its rows of a token in fp32 by ascending slot, rounds
/// once to combine_type; the owner sums ranks in fp32 ascending and rounds once. PER_HOST: rank partials, rounded, are
/// summed per host in rank order and rounded, hosts summed in host order. PER_ROW: one fp32 sum over ascending (rank,
/// slot), rounded once; not on FLAT. The same inputs give the same bytes on every exchange.
EPJIT_API epjit_status epjit_combine(epjit_exchange* exchange, const epjit_plan* plan, const epjit_combine_args* ranks,
                                     uint32_t num_ranks, const epjit_combine_options* options, epjit_stream stream);
EPJIT_API epjit_status epjit_combine_send(epjit_exchange* exchange, const epjit_plan* plan,
                                          const epjit_combine_args* ranks, uint32_t num_ranks,
                                          const epjit_combine_options* options, epjit_stream stream);
EPJIT_API epjit_status epjit_combine_receive(epjit_exchange* exchange, const epjit_plan* plan,
                                             const epjit_combine_args* ranks, uint32_t num_ranks,
                                             const epjit_combine_options* options, epjit_stream stream);

EPJIT_API epjit_status epjit_weight_gradients(epjit_exchange* exchange, const epjit_plan* plan,
                                              const epjit_weight_gradient_args* ranks, uint32_t num_ranks,
                                              epjit_stream stream);

// ---- model shapes: need no runtime and no GPU ----------------------------------------------------------------------

typedef struct epjit_model_shape {
    uint32_t struct_size;
    int32_t hidden;          ///< H
    int32_t num_experts;     ///< E
    int32_t topk;            ///< K
    epjit_dtype token_type;  ///< of activations
    int32_t fp8_dispatch;    ///< non-zero: the config quantises to fp8 with 128-blocks, rows travel as fp8 too
    epjit_scale_type fp8_scales;
    int32_t reserved;
    char name[64];  ///< nul-terminated, cut where it is longer
} epjit_model_shape;

/// How many shapes are built in.
EPJIT_API int32_t epjit_num_models(void);
/// The built-in shape with index 0 <= index < epjit_num_models(), sorted by name.
EPJIT_API epjit_status epjit_get_model(int32_t index, epjit_model_shape* out);
/// A built-in shape by name; an unknown name is EPJIT_ERROR_CONFIG that lists near ones.
EPJIT_API epjit_status epjit_find_model(const char* name, epjit_model_shape* out);
/// From a Hugging Face config.json; EPJIT_ERROR_CONFIG says what was looked for and what was found.
EPJIT_API epjit_status epjit_load_model_config(const char* path, epjit_model_shape* out);
/// The same from text; `origin` names it in messages.
EPJIT_API epjit_status epjit_parse_model_config(const char* json, const char* origin, epjit_model_shape* out);

#ifdef __cplusplus
}  // extern "C"
#endif

// The parts for groups of ranks and for an engine's own steps.
#include "epjit/epjit_groups.h"
#include "epjit/epjit_resident.h"

#endif  // EPJIT_EPJIT_H
