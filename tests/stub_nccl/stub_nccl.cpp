// SPDX-License-Identifier: Apache-2.0
// An NCCL for tests: ranks are threads of one process, memory is the host's or that of a GPU, calls meet in rounds.
// Built once per version (STUB_VERSION), each with the symbols that version has. Non-blocking communicators behave as
// the real ones do: a call returns ncclInProgress, goes on in a thread, and ends when every rank has come or the
// communicator is aborted.
#include "host/nccl/api.hpp"
#include "tests/stub_nccl/memory.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

using namespace epjit::host;
using namespace epjit::tests;

namespace {

/// What tests set through stub_nccl_set.
struct control_state {
    std::atomic<int> null_window{0}, swap_peers{0}, team_size{0}, fail_init{0}, fail_allocate{0}, async_error{0};
    /// An abort waits for all work that is under way, as one that frees device memory does.
    std::atomic<int> abort_waits{0};
    std::atomic<int> aborts{0}, destroys{0}, live_windows{0}, live_memory{0}, blocking_splits{0}, groups{0};
    std::atomic<int> under_way{0}, sends{0}, largest_gather{0};  ///< bytes of a rank
    std::atomic<int> far_bytes{0};                               ///< sent to ranks of another team
    std::atomic<int> most_messages{0};                           ///< to one rank in one group
};
control_state& control() {
    static control_state state;
    return state;
}

char last_error_text[256] = "";

struct call {
    enum class kind { init, split, gather, broadcast, reduce, send, receive, window } what = kind::init;
    const void* send = nullptr;
    void* receive = nullptr;
    std::size_t count = 0;
    nccl_type type = nccl_type::uint8;
    int peer = 0;  ///< or root, or colour
    int key = 0;
    nccl_comm* child = nullptr;
    bool child_blocking = false;
    nccl_window* window = nullptr;
};

struct world;

}  // namespace

struct ncclComm {
    std::shared_ptr<world> all;
    int rank = 0;
    bool blocking = true;
    std::atomic<int> state{nccl_success};
    std::atomic<bool> aborted{false};
    std::thread worker;
    std::vector<call> queued;
};

/// As in NCCL 2.28; where memory is the host's, a "device" pointer to it can be read.
struct ncclWindow_vidmem {
    std::uint64_t win_host = 0;
    std::uint64_t lsa_flat_base = 0;
    std::int32_t lsa_rank = 0, world_rank = 0;
    std::uint32_t stride_4g = 1, mc_offset_4k = 0;
    // Beyond what a real one is known to have.
    stub_team team;
};

namespace {

/// The ranks of a communicator. Every rank brings its calls to a round; the last to come carries them out.
struct world {
    explicit world(int n) : size(n), brought(n), comms(n, nullptr) {}
    const int size;
    std::mutex mutex;
    std::condition_variable moved;
    std::vector<std::vector<call>> brought;
    std::vector<ncclComm*> comms;
    int present = 0;
    std::uint64_t round = 0;

    nccl_result meet(ncclComm* comm, std::vector<call> calls);
    void carry_out();
};

std::mutex worlds_mutex;
std::map<std::string, std::shared_ptr<world>>& worlds() {
    // Never destroyed: a test may leave a call inside.
    static auto* const all = new std::map<std::string, std::shared_ptr<world>>();
    return *all;
}
thread_local int group_depth = 0;
thread_local std::vector<ncclComm*> group_comms;

std::size_t bytes_of(const call& c) {
    return c.count * (c.type == nccl_type::f32 || c.type == nccl_type::int32  ? 4
                      : c.type == nccl_type::f16 || c.type == nccl_type::bf16 ? 2
                                                                              : 1);
}

void split_ranks(world& w, std::size_t index) {
    std::map<int, std::vector<std::pair<int, int>>> colours;  // key, rank
    for (int r = 0; r < w.size; ++r) {
        const call& c = w.brought[r][index];
        if (c.peer >= 0) {
            colours[c.peer].emplace_back(c.key, r);
        }
    }
    for (auto& [colour, members] : colours) {
        std::sort(members.begin(), members.end());
        const auto made = std::make_shared<world>(static_cast<int>(members.size()));
        for (std::size_t i = 0; i < members.size(); ++i) {
            const call& c = w.brought[members[i].second][index];
            auto* comm = new ncclComm();
            comm->all = made;
            comm->rank = static_cast<int>(i);
            comm->blocking = c.child_blocking;
            control().blocking_splits += c.child_blocking ? 1 : 0;
            made->comms[i] = comm;
            *c.child = comm;
        }
    }
}

void register_window(world& w, std::size_t index) {
    const int team = control().team_size > 0 ? control().team_size.load() : w.size;
    for (int r = 0; r < w.size; ++r) {
        const call& mine = w.brought[r][index];
        if (control().null_window != 0) {
            *mine.window = nullptr;
            continue;
        }
        auto* window = new ncclWindow_vidmem();
        const int first = r / team * team;
        std::vector<void*> members;
        for (int i = 0; i < team && first + i < w.size; ++i) {
            // Swapped peers: rank 0 takes the mapping of another rank for the wrong one's.
            const int source = control().swap_peers != 0 && r == 0 && i > 0 ? first + team - i : first + i;
            members.push_back(const_cast<void*>(w.brought[source][index].send));
        }
        window->team = map_stub_team(members, std::size_t{1} << 32);
        window->lsa_flat_base = window->team.base;
        window->lsa_rank = r - first;
        window->world_rank = r;
        *mine.window = window;
        ++control().live_windows;
    }
}

void gather(world& w, std::size_t index) {
    std::vector<std::vector<char>> copies;
    for (int r = 0; r < w.size; ++r) {
        const call& c = w.brought[r][index];
        copies.emplace_back(bytes_of(c));
        copy_stub_memory(copies.back().data(), c.send, bytes_of(c));
    }
    for (int r = 0; r < w.size; ++r) {
        auto* to = static_cast<char*>(w.brought[r][index].receive);
        for (const auto& part : copies) {
            copy_stub_memory(to, part.data(), part.size());
            to += part.size();
        }
    }
}

void reduce(world& w, std::size_t index) {
    const call& first = w.brought[0][index];
    std::vector<float> sum(first.count);
    std::vector<float> part(first.count);  // tests sum f32
    for (int r = 0; r < w.size; ++r) {
        copy_stub_memory(part.data(), w.brought[r][index].send, part.size() * sizeof(float));
        for (std::size_t i = 0; i < first.count; ++i) {
            sum[i] += part[i];
        }
    }
    copy_stub_memory(w.brought[first.peer][index].receive, sum.data(), sum.size() * sizeof(float));
}

/// Sends and receives of all ranks, matched in order for every pair.
void pass_messages(world& w) {
    std::map<std::pair<int, int>, std::vector<const call*>> sent;
    for (int r = 0; r < w.size; ++r) {
        for (const call& c : w.brought[r]) {
            if (c.what == call::kind::send) {
                sent[{r, c.peer}].push_back(&c);
            }
        }
    }
    for (int r = 0; r < w.size; ++r) {
        for (const call& c : w.brought[r]) {
            if (c.what == call::kind::receive) {
                auto& from = sent[{c.peer, r}];
                if (from.empty() || bytes_of(*from.front()) != bytes_of(c)) {
                    std::fprintf(stderr, "stub NCCL: rank %d receives from %d what was not sent\n", r, c.peer);
                    std::abort();
                }
                copy_stub_memory(c.receive, from.front()->send, bytes_of(c));
                from.erase(from.begin());
            }
        }
    }
}

void world::carry_out() {
    for (std::size_t i = 0; i < brought[0].size(); ++i) {
        switch (brought[0][i].what) {
            case call::kind::init: break;
            case call::kind::split: split_ranks(*this, i); break;
            case call::kind::window: register_window(*this, i); break;
            case call::kind::gather: gather(*this, i); break;
            case call::kind::reduce: reduce(*this, i); break;
            case call::kind::broadcast:
                for (int r = 0; r < size; ++r) {
                    const call& c = brought[r][i];
                    copy_stub_memory(c.receive, brought[c.peer][i].send, bytes_of(c));
                }
                break;
            case call::kind::send:
            case call::kind::receive: pass_messages(*this); return;
        }
    }
}

nccl_result world::meet(ncclComm* comm, std::vector<call> calls) {
    struct guard {
        guard() { ++control().under_way; }
        ~guard() { --control().under_way; }
    } const here;
    std::unique_lock lock(mutex);
    const std::uint64_t mine = round;
    brought[comm->rank] = std::move(calls);
    if (++present == size) {
        carry_out();
        present = 0;
        ++round;
        moved.notify_all();
        return nccl_success;
    }
    while (round == mine) {
        moved.wait_for(lock, std::chrono::milliseconds(2));
        if (comm->aborted && round == mine) {
            --present;
            return nccl_internal_error;
        }
    }
    return nccl_success;
}

void join(ncclComm* comm) {
    if (comm->worker.joinable()) {
        comm->worker.join();
    }
}

nccl_result launch(ncclComm* comm) {
    std::vector<call> calls = std::move(comm->queued);
    comm->queued.clear();
    if (comm->blocking) {
        return comm->all->meet(comm, std::move(calls));
    }
    join(comm);
    comm->state = nccl_in_progress;
    comm->worker = std::thread([comm, calls = std::move(calls)]() mutable {
        const nccl_result result = comm->all->meet(comm, std::move(calls));
        comm->state = control().async_error != 0 ? control().async_error.load() : result;
    });
    return nccl_in_progress;
}

nccl_result enqueue(ncclComm* comm, call c) {
    if (comm->state == nccl_in_progress) {
        return nccl_invalid_argument;  // "before the previous operation returned ncclSuccess"
    }
    comm->queued.push_back(c);
    if (group_depth > 0) {
        if (std::find(group_comms.begin(), group_comms.end(), comm) == group_comms.end()) {
            group_comms.push_back(comm);
        }
        return nccl_success;
    }
    return launch(comm);
}

}  // namespace

extern "C" {

void stub_nccl_set(const char* name, int value) {
    control_state& c = control();
    const std::map<std::string_view, std::atomic<int>*> fields{
        {"null_window", &c.null_window}, {"swap_peers", &c.swap_peers},       {"team_size", &c.team_size},
        {"fail_init", &c.fail_init},     {"fail_allocate", &c.fail_allocate}, {"async_error", &c.async_error},
        {"abort_waits", &c.abort_waits}, {"most_messages", &c.most_messages}};
    *fields.at(name) = value;
}
int stub_nccl_get(const char* name) {
    control_state& c = control();
    const std::map<std::string_view, std::atomic<int>*> fields{{"aborts", &c.aborts},
                                                               {"destroys", &c.destroys},
                                                               {"live_windows", &c.live_windows},
                                                               {"live_memory", &c.live_memory},
                                                               {"blocking_splits", &c.blocking_splits},
                                                               {"groups", &c.groups},
                                                               {"sends", &c.sends},
                                                               {"far_bytes", &c.far_bytes},
                                                               {"most_messages", &c.most_messages},
                                                               {"largest_gather", &c.largest_gather}};
    return *fields.at(name);
}

nccl_result ncclGetVersion(int* version) {
    *version = STUB_VERSION;
    return nccl_success;
}
const char* ncclGetErrorString(nccl_result result) {
    return result == nccl_success ? "no error" : result == nccl_remote_error ? "remote process exited" : "stub failure";
}
const char* ncclGetLastError(ncclComm*) {
    return last_error_text;
}
nccl_result ncclGetUniqueId(nccl_unique_id* id) {
    static std::atomic<int> next{0};
    *id = {};
    if (const char* fixed = std::getenv("NCCL_COMM_ID")) {
        std::snprintf(id->internal, sizeof id->internal, "at %s", fixed);
    } else {
        std::snprintf(id->internal, sizeof id->internal, "number %d", next++);
    }
    return nccl_success;
}
nccl_result ncclCommInitRankConfig(nccl_comm* out, int size, nccl_unique_id id, int rank, nccl_config* config) {
    if (config->magic != 0xcafebeefU || config->size < 48 || config->not_set != INT_MIN) {
        return nccl_invalid_argument;
    }
    if (control().fail_init != 0) {
        std::snprintf(last_error_text, sizeof last_error_text, "no socket interface found");
        return nccl_system_error;
    }
    std::shared_ptr<world> w;
    {
        const std::lock_guard lock(worlds_mutex);
        std::shared_ptr<world>& known = worlds()[id.internal];
        if (known == nullptr || known->comms[rank] != nullptr) {
            known = std::make_shared<world>(size);  // an id may be used again once its ranks are made
        }
        w = known;
        w->comms[rank] = *out = new ncclComm();
    }
    (*out)->all = w;
    (*out)->rank = rank;
    (*out)->blocking = config->blocking != 0;
    return enqueue(*out, {});
}
nccl_result ncclCommFinalize(ncclComm*) {
    return nccl_success;
}
nccl_result ncclCommDestroy(ncclComm* comm) {
    ++control().destroys;
    join(comm);
    delete comm;
    return nccl_success;
}
nccl_result ncclCommAbort(ncclComm* comm) {
    ++control().aborts;
    comm->aborted = true;
    join(comm);
    while (control().abort_waits != 0 && control().under_way != 0) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    delete comm;
    return nccl_success;
}
nccl_result ncclCommGetAsyncError(ncclComm* comm, nccl_result* state) {
    *state =
        comm->state == nccl_success && control().async_error != 0 ? control().async_error.load() : comm->state.load();
    return nccl_success;
}
nccl_result ncclCommCount(ncclComm* comm, int* count) {
    *count = comm->all->size;
    return nccl_success;
}
nccl_result ncclCommUserRank(ncclComm* comm, int* rank) {
    *rank = comm->rank;
    return nccl_success;
}
nccl_result ncclCommCuDevice(ncclComm*, int* device) {
    *device = 0;
    return nccl_success;
}
nccl_result ncclGroupStart() {
    ++group_depth;
    return nccl_success;
}
nccl_result ncclGroupEnd() {
    ++control().groups;
    if (--group_depth > 0) {
        return nccl_success;
    }
    nccl_result result = nccl_success;
    for (ncclComm* comm : std::exchange(group_comms, {})) {
        const nccl_result r = launch(comm);
        result = r != nccl_success ? r : result;
    }
    return result;
}
nccl_result ncclSend(const void* from, std::size_t count, nccl_type type, int peer, ncclComm* comm,
                     epjit::stream_t stream) {
    wait_for_stub_stream(stream);
    call c{call::kind::send, from, nullptr, count, type, peer};
    ++control().sends;
    const auto same = 1 + std::count_if(comm->queued.begin(), comm->queued.end(), [&](const call& other) {
                          return other.what == call::kind::send && other.peer == peer;
                      });
    int most = control().most_messages;
    while (same > most && !control().most_messages.compare_exchange_weak(most, static_cast<int>(same))) {
    }
    if (const int team = control().team_size; team > 0 && peer / team != comm->rank / team) {
        control().far_bytes += static_cast<int>(bytes_of(c));
    }
    return enqueue(comm, c);
}
nccl_result ncclRecv(void* to, std::size_t count, nccl_type type, int peer, ncclComm* comm, epjit::stream_t stream) {
    wait_for_stub_stream(stream);
    call c{call::kind::receive, nullptr, to, count, type, peer};
    return enqueue(comm, c);
}
nccl_result ncclAllGather(const void* from, void* to, std::size_t count, nccl_type type, ncclComm* comm,
                          epjit::stream_t stream) {
    wait_for_stub_stream(stream);
    call c{call::kind::gather, from, to, count, type, 0};
    int largest = control().largest_gather;
    while (static_cast<int>(bytes_of(c)) > largest &&
           !control().largest_gather.compare_exchange_weak(largest, static_cast<int>(bytes_of(c)))) {
    }
    return enqueue(comm, c);
}
nccl_result ncclBroadcast(const void* from, void* to, std::size_t count, nccl_type type, int root, ncclComm* comm,
                          epjit::stream_t stream) {
    wait_for_stub_stream(stream);
    call c{call::kind::broadcast, from, to, count, type, root};
    return enqueue(comm, c);
}
nccl_result ncclReduce(const void* from, void* to, std::size_t count, nccl_type type, nccl_reduction, int root,
                       ncclComm* comm, epjit::stream_t stream) {
    wait_for_stub_stream(stream);
    call c{call::kind::reduce, from, to, count, type, root};
    return enqueue(comm, c);
}

#ifndef STUB_WITHOUT_SPLIT
nccl_result ncclCommSplit(ncclComm* comm, int color, int key, nccl_comm* child, nccl_config* config) {
    call c;
    c.what = call::kind::split;
    c.peer = color;
    c.key = key;
    c.child = child;
    c.child_blocking = config->blocking != 0;
    return enqueue(comm, c);
}
#endif

#if STUB_VERSION >= 21900
nccl_result ncclMemAlloc(void** pointer, std::size_t bytes) {
    if (control().fail_allocate != 0) {
        return nccl_unhandled_cuda_error;
    }
    *pointer = allocate_stub_memory(bytes);
    if (*pointer == nullptr) {
        return nccl_system_error;
    }
    ++control().live_memory;
    return nccl_success;
}
nccl_result ncclMemFree(void* pointer) {
    free_stub_memory(pointer);
    --control().live_memory;
    return nccl_success;
}
#endif

#if STUB_VERSION >= 22703
nccl_result ncclCommWindowRegister(ncclComm* comm, void* memory, std::size_t bytes, nccl_window* window, int flags) {
    if (flags != nccl_window_symmetric || bytes % 4096 != 0) {
        return nccl_invalid_argument;
    }
    call c;
    c.what = call::kind::window;
    c.send = memory;
    c.count = bytes;
    c.window = window;
    return enqueue(comm, c);
}
nccl_result ncclCommWindowDeregister(ncclComm*, nccl_window window) {
    unmap_stub_team(window->team);
    delete window;
    --control().live_windows;
    return nccl_success;
}
#endif

#if STUB_VERSION >= 22902
nccl_result ncclGetPeerDevicePointer(nccl_window window, std::size_t offset, int peer, void** out) {
    const int index = peer - (window->world_rank - window->lsa_rank);
    *out = index < 0 || index >= static_cast<int>(window->team.peers.size())
               ? nullptr
               : static_cast<char*>(window->team.peers[index]) + offset;
    return nccl_success;
}
#endif

}  // extern "C"
