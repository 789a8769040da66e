// SPDX-License-Identifier: Apache-2.0
#include "tools/bench/machine.hpp"

#include "host/exchange/communicator_state.hpp"
#include "host/runtime/runtime_state.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace epjit::tools {
namespace {

constexpr int batch = 25;  ///< repetitions between two synchronisations
constexpr std::uint32_t flag_rounds = 1000;
constexpr std::size_t result_offset = 128;
constexpr std::uint64_t flag_limit_ns = 2'000'000'000;

int count_ranks(runtime& rt, int wanted) {
    const int gpus = rt.state().driver()->num_devices;
    if (gpus < 2) {
        throw unsupported_error(fmt::format("this machine has {} GPU{}: exchanges between real ranks take two or more",
                                            gpus, gpus == 1 ? "" : "s"),
                                "run `epjit bench --suite route` for one GPU");
    }
    if (wanted < 0 || wanted == 1 || wanted > gpus) {
        throw config_error(fmt::format("--ranks {} on a machine with {} GPUs", wanted, gpus),
                           fmt::format("use 2 to {} ranks", gpus));
    }
    return wanted != 0 ? wanted : gpus;
}

}  // namespace

bench_rank::bench_rank(communicator c)
    : comm(std::move(c)),
      context(comm.state().context),
      stream(context),
      from(context, bench_copy_bytes),
      to(context, bench_copy_bytes),
      flags(context, 256),
      probes(context) {
    for (int i = 0; i < batch; ++i) {
        gates.emplace_back(context, false);
        starts.emplace_back(context);
        ends.emplace_back(context);
    }
    host::fill_bytes(context, from.data(), 1, bench_copy_bytes, stream.get());
    host::fill_bytes(context, to.data(), 2, bench_copy_bytes, stream.get());
    stream.synchronize();
}

bench_machine::bench_machine(runtime& rt, int ranks) : runtime_(&rt), team_(count_ranks(rt, ranks)) {
    std::vector<int> devices;
    for (int d = 0; d < team_.size(); ++d) {
        devices.push_back(d);
    }
    std::vector<communicator> made(devices.size());
    communicator::local(rt, devices, made);
    for (communicator& c : made) {
        ranks_.push_back(std::make_unique<bench_rank>(std::move(c)));
    }
    enable_peers();
}

bench_machine::bench_machine(runtime& rt, one_gpu) : runtime_(&rt), team_(1) {
    ranks_.push_back(std::make_unique<bench_rank>(communicator::loopback(rt, 1, 0)));
}

void bench_machine::enable_peers() {
    for (const auto& from : ranks_) {
        for (const auto& to : ranks_) {
            if (from == to) {
                continue;
            }
            const host::driver_api& api = from->context->api();
            int can = 0;
            api.check(api.can_access_peer(&can, from->context->device(), to->context->device()),
                      "cuDeviceCanAccessPeer");
            if (can == 0) {
                throw unsupported_error(
                    fmt::format("GPU {} cannot reach the memory of GPU {}: the rates that floors come from cannot be "
                                "measured",
                                from->context->device(), to->context->device()),
                    "use --ranks with GPUs that are joined by NVLink, see `epjit doctor`");
            }
            const host::scoped_context current(*from->context);
            const host::cu_result enabled = api.enable_peer_access(to->context->handle(), 0);
            if (enabled != host::cu_peer_access_already_enabled) {  // NCCL does the same
                api.check(enabled, "cuCtxEnablePeerAccess");
            }
        }
    }
}

std::vector<double> bench_machine::time(int r, const repeats& n, const std::function<void()>& work) {
    bench_rank& me = rank(r);
    const host::driver_api& api = me.context->api();
    const stream_t stream = me.stream.get();
    const auto begin_together = [&](int i) {
        host::copy_on_device(me.context, me.to.data(), me.from.data(), bench_copy_bytes, stream);
        me.gates[i].record(stream);
        team_.meet();  // a wait for a gate that is not recorded would not wait
        const host::scoped_context current(*me.context);
        for (int other = 0; other < num_ranks(); ++other) {
            if (other != r) {
                api.check(api.stream_wait_event(stream, rank(other).gates[i].get(), 0), "cuStreamWaitEvent");
            }
        }
    };
    std::vector<double> us;
    for (int done = 0; done < n.warmup + n.timed; done += batch) {
        const int count = std::min(batch, n.warmup + n.timed - done);
        for (int i = 0; i < count; ++i) {
            begin_together(i);
            me.starts[i].record(stream);
            work();
            me.ends[i].record(stream);
        }
        me.stream.synchronize();
        team_.meet();  // gates may be recorded again
        for (int i = 0; i < count; ++i) {
            if (done + i >= n.warmup) {
                us.push_back(me.ends[i].us_since(me.starts[i]));
            }
        }
    }
    return us;
}

std::vector<std::vector<double>> bench_machine::time_all(const repeats& n,
                                                         const std::function<void(bench_rank&, int)>& work) {
    std::vector<std::vector<double>> us(ranks_.size());
    team_.run([&](int r) { us[static_cast<std::size_t>(r)] = time(r, n, [&] { work(rank(r), r); }); });
    return us;
}

machine_rates bench_machine::measure(const repeats& n) {
    const auto slowest = [&](auto work) { return slowest_median(time_all(n, work)); };
    machine_rates rates;
    const double copy_us = slowest([](bench_rank& me, int) {
        host::copy_on_device(me.context, me.to.data(), me.from.data(), bench_copy_bytes, me.stream.get());
    });
    // Each rank to the next: every link is busy both ways.
    const double peer_us = slowest([&](bench_rank& me, int r) {
        const bench_rank& next = rank((r + 1) % num_ranks());
        const host::scoped_context current(*me.context);
        const host::driver_api& api = me.context->api();
        api.check(api.copy_to_peer(reinterpret_cast<host::cu_pointer>(next.to.data()), next.context->handle(),
                                   reinterpret_cast<host::cu_pointer>(me.from.data()), me.context->handle(),
                                   bench_copy_bytes, me.stream.get()),
                  "cuMemcpyPeerAsync");
    });
    const auto bytes = static_cast<double>(bench_copy_bytes);
    rates.copy_gbps = 2 * bytes / copy_us * 1e-3;
    rates.peer_gbps = bytes / peer_us * 1e-3;
    rates.launch_us = slowest([](bench_rank& me, int) { me.probes.launch_empty(me.stream.get()); });
    rates.flag_us = measure_flag();
    return rates;
}

double bench_machine::measure_flag() {
    // Rank 0 with rank 1.
    team_.run([&](int r) {
        host::fill_bytes(rank(r).context, rank(r).flags.data(), 0, rank(r).flags.bytes(), rank(r).stream.get());
        rank(r).stream.synchronize();
    });
    static_cast<void>(time_all({0, 1}, [&](bench_rank& me, int r) {
        if (r < 2) {
            me.probes.launch_flags(me.flags.data(), rank(1 - r).flags.data(), me.flags.as<std::byte>() + result_offset,
                                   flag_limit_ns, flag_rounds, r == 0, me.stream.get());
        }
    }));
    bench_rank& leader = rank(0);
    const std::uint64_t ns = host::to_host<std::uint64_t>(leader.context, leader.flags.as<std::byte>() + result_offset,
                                                          1, leader.stream.get())
                                 .front();
    if (ns == 0) {
        throw timeout_error(fmt::format("GPU 0 waited {} ms for a flag of GPU 1", flag_limit_ns / 1'000'000),
                            "check the link with `epjit doctor` and nvidia-smi topo -m");
    }
    return static_cast<double>(ns) * 1e-3 / flag_rounds;
}

}  // namespace epjit::tools
