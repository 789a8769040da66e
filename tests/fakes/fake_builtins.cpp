// SPDX-License-Identifier: Apache-2.0
// Stands beside the fake libnvrtc, so that a loader finds a build-id here too.
extern "C" __attribute__((visibility("default"))) int epjit_fake_builtins(void);
int epjit_fake_builtins(void) {
    return 1;
}
