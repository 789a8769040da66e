// SPDX-License-Identifier: Apache-2.0
#include "host/exchange/call_order.hpp"

#include <algorithm>

namespace epjit::host {
namespace {

bool captured(const driver_api& api, stream_t stream) noexcept {
    capture_status status = capture_status::none;
    return api.stream_is_capturing(stream, &status) == cu_success && status != capture_status::none;
}

}  // namespace

void lane_order::on(const device_context& context, stream_t stream) {
    if (used_ && last_ != stream) {
        const driver_api& api = context.api();
        // A capture can wait for nothing outside of it, nor anything outside for what has yet to be replayed.
        if (captured(api, stream) == captured(api, last_)) {
            api.check(api.event_record(event_.get(), last_), "cuEventRecord", "on the lane's previous stream");
            api.check(api.stream_wait_event(stream, event_.get(), 0), "cuStreamWaitEvent");
        }
    }
    used_ = true;
    last_ = stream;
}

exchange_order::last_call* exchange_order::find(const lane_of& lane) noexcept {
    const auto found = std::find_if(calls_.begin(), calls_.end(), [&](const last_call& c) { return c.by == lane; });
    return found != calls_.end() ? &*found : nullptr;
}

void exchange_order::begin(const void* exchange, std::int32_t lane, const shared_context& context, stream_t stream) {
    const std::scoped_lock hold(mutex_);
    const driver_api& api = context->api();
    const lane_of me{exchange, lane};
    for (last_call& other : calls_) {
        if (other.by.exchange == exchange || other.stream == stream ||
            std::find(other.followers.begin(), other.followers.end(), me) != other.followers.end() ||
            captured(api, stream) || captured(api, other.stream)) {
            continue;
        }
        several_streams_ = true;
        if (!other.recorded) {
            api.check(api.event_record(other.end.get(), other.stream), "cuEventRecord",
                      "on the stream of another exchange's last call");
            other.recorded = true;
        }
        api.check(api.stream_wait_event(stream, other.end.get(), 0), "cuStreamWaitEvent");
        other.followers.push_back(me);
    }
    if (find(me) == nullptr) {
        calls_.push_back({me, stream, gpu_event(context, false), false, {}});
    }
}

void exchange_order::end(const void* exchange, std::int32_t lane, const device_context& context,
                         stream_t stream) noexcept {
    const std::scoped_lock hold(mutex_);
    last_call& call = *find({exchange, lane});
    call.stream = stream;
    call.followers.clear();
    // On one stream none of this costs anything, and a kernel may still be launched before the end of the one in front.
    const driver_api& api = context.api();
    call.recorded =
        several_streams_ && !captured(api, stream) && api.event_record(call.end.get(), stream) == cu_success;
}

void exchange_order::forget(const void* exchange) noexcept {
    const std::scoped_lock hold(mutex_);
    std::erase_if(calls_, [&](const last_call& c) { return c.by.exchange == exchange; });
    for (last_call& c : calls_) {
        std::erase_if(c.followers, [&](const lane_of& l) { return l.exchange == exchange; });
    }
}

ordered_call::ordered_call(lane_order& lane_calls, exchange_order& order, const void* exchange, std::int32_t lane,
                           const shared_context& context, stream_t stream)
    : order_(order), exchange_(exchange), lane_(lane), context_(context), stream_(stream) {
    lane_calls.on(*context, stream);
    order.begin(exchange, lane, context, stream);
}

ordered_call::~ordered_call() {
    order_.end(exchange_, lane_, *context_, stream_);
}

}  // namespace epjit::host
