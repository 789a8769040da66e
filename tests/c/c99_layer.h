// SPDX-License-Identifier: Apache-2.0
#ifndef EPJIT_TESTS_C99_LAYER_H
#define EPJIT_TESTS_C99_LAYER_H

#ifdef __cplusplus
extern "C" {
#endif

/// One layer over four ranks on the host exchange, all of it in C99: null when every value is right, else what failed.
const char* epjit_test_c99_layer(void);

#ifdef __cplusplus
}
#endif

#endif
