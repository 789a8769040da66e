// SPDX-License-Identifier: Apache-2.0
#include "tools/bench/probe.hpp"

#include <cstring>
#include <span>

namespace epjit::tools {
namespace {

/// Assembled by the driver: neither NVRTC nor a cache is in the way of what is measured.
constexpr const char* probe_ptx = R"(
.version 7.0
.target sm_70
.address_size 64
.visible .entry epjit_bench_empty()
{
    ret;
}
.visible .entry epjit_bench_flags(.param .u64 p_mine, .param .u64 p_peer, .param .u64 p_result, .param .u64 p_limit,
    .param .u32 p_rounds, .param .u32 p_leads)
{
    .reg .pred %done, %late, %leads;
    .reg .b32 %round, %rounds, %seen, %flag;
    .reg .b64 %mine, %peer, %result, %limit, %begin, %now;
    ld.param.u64 %mine, [p_mine];
    ld.param.u64 %peer, [p_peer];
    ld.param.u64 %result, [p_result];
    ld.param.u64 %limit, [p_limit];
    ld.param.u32 %rounds, [p_rounds];
    ld.param.u32 %flag, [p_leads];
    cvta.to.global.u64 %mine, %mine;
    cvta.to.global.u64 %peer, %peer;
    cvta.to.global.u64 %result, %result;
    setp.ne.u32 %leads, %flag, 0;
    mov.u32 %round, 1;
    mov.u64 %begin, %globaltimer;
next:
    @%leads st.release.sys.global.u32 [%peer], %round;
poll:
    ld.acquire.sys.global.u32 %seen, [%mine];
    setp.ge.u32 %done, %seen, %round;
    @%done bra answer;
    mov.u64 %now, %globaltimer;
    sub.u64 %now, %now, %begin;
    setp.gt.u64 %late, %now, %limit;
    @%late bra fail;
    bra poll;
answer:
    @!%leads st.release.sys.global.u32 [%peer], %round;
    add.u32 %round, %round, 1;
    setp.le.u32 %done, %round, %rounds;
    @%done bra next;
    mov.u64 %now, %globaltimer;
    sub.u64 %now, %now, %begin;
    st.global.u64 [%result], %now;
    ret;
fail:
    mov.u64 %now, 0;
    st.global.u64 [%result], %now;
    ret;
}
)";

}  // namespace

probe_kernels::probe_kernels(const host::shared_context& context)
    : context_(context),
      module_(context, std::as_bytes(std::span(probe_ptx, std::strlen(probe_ptx) + 1))),
      empty_(module_.function("epjit_bench_empty")),
      flags_(module_.function("epjit_bench_flags")) {}

void probe_kernels::launch_empty(stream_t stream) const {
    const host::scoped_context current(*context_);
    const host::driver_api& api = context_->api();
    api.check(api.launch(empty_, 1, 1, 1, 32, 1, 1, 0, stream, nullptr, nullptr), "cuLaunchKernel");
}

void probe_kernels::launch_flags(const void* mine, void* peer, void* result, std::uint64_t limit_ns,
                                 std::uint32_t rounds, bool leads, stream_t stream) const {
    std::uint32_t leader = leads ? 1 : 0;
    void* params[] = {&mine, &peer, &result, &limit_ns, &rounds, &leader};
    const host::scoped_context current(*context_);
    const host::driver_api& api = context_->api();
    api.check(api.launch(flags_, 1, 1, 1, 1, 1, 1, 0, stream, params, nullptr), "cuLaunchKernel");
}

}  // namespace epjit::tools
