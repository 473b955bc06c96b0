"""Up to what size a single op on the CPU is left to torch's own: the limits of
:func:`pyops.backends.prefers_torch`, by op, for calls without and with a gradient.
"""

from __future__ import annotations

#: The limit where nothing else was measured: on larger tensors a kernel saves about what its call costs.
TINY_ELEMENTS = 1024
TINY = (TINY_ELEMENTS, TINY_ELEMENTS)

#: From a megabyte on outputs come from our own cache of memory, and torch's may be fresh pages.
KEPT = (1 << 18) - 1

#: The most float32 elements on which torch's own op takes less time, called for its value and for a gradient.
#: A call of ours costs some 3 us more than torch's, and one with a gradient some 25 us, because its
#: autograd.Function is Python; a kernel that is bound by memory has little to save. Measured in steps of 2 on
#: 2 cores of an AMD EPYC (Zen 4, some on Zen 5 again), torch 2.13.
TORCH_IS_FASTER: dict[str, tuple[int, int]] = {
    "relu": (KEPT, KEPT),
    "leaky_relu": (KEPT, KEPT),
    "hardswish": (KEPT, KEPT),
    "sigmoid": (16384, KEPT),
    "silu": (16384, 131072),
    "tanh": (1024, 16384),
    "selu": (2048, 8192),
    "elu": (2048, 8192),
    "softplus": (2048, 16384),
    "prelu": (KEPT, 16384),
    "mse_loss": (0, 16384),
    "smooth_l1_loss": (0, 16384),
    "huber_loss": (0, 16384),
    "l1_loss": (0, 0),
    "binary_cross_entropy_with_logits": (0, 2048),
    "softmax": (32768, KEPT),
    "softmax, few classes": (0, 1024),
    "softmax, strided": (32768, KEPT),
    "cross_entropy": (32768, 65536),
    "cross_entropy, few classes": (0, 2048),
    "nll_loss": (KEPT, KEPT),
    "embedding": (KEPT, 16384),
    "interpolate": (512, 2048),
    "max_pool2d": (16384, 65536),
    "avg_pool2d": (8192, 16384),
    "adaptive_avg_pool2d": (65536, 32768),
    "batch_norm, images": (16384, 65536),
    "batch_norm, rows": (KEPT, KEPT),
    "batch_norm, relu": (1024, 8192),
    "batch_norm, eval": (KEPT, 65536),
    "batch_norm, eval, relu": (KEPT, 8192),
    "layer_norm": (KEPT, 65536),
    "group_norm": (KEPT, KEPT),
    "rnn_tanh_cell": (65536, 65536),
    "rnn_relu_cell": (65536, 65536),
    "gru_cell": (49152, 0),
    "lstm_cell": (65536, 0),
}

#: The same for bfloat16 and float16, where torch's op takes less time in both, measured likewise; other ops
#: have TINY. Cross-entropy stays below its break-even for a gradient (131072): torch's rounds in between.
TORCH_IS_FASTER_IN_16_BITS: dict[str, tuple[int, int]] = {
    "relu": (KEPT, KEPT),
    "leaky_relu": (KEPT, KEPT),
    "hardswish": (131072, 131072),
    "sigmoid": (16384, 65536),
    "silu": (16384, 65536),
    "tanh": (8192, 32768),
    "selu": (2048, 8192),
    "elu": (2048, 8192),
    "softplus": (8192, 16384),
    "prelu": (KEPT, 16384),
    "mse_loss": (16384, 16384),
    "smooth_l1_loss": (8192, 16384),
    "huber_loss": (4096, 8192),
    "l1_loss": (8192, 4096),
    "binary_cross_entropy_with_logits": (1024, 4096),
    "softmax": (65536, 131072),
    "softmax, few classes": (2048, 2048),
    "softmax, strided": (131072, 131072),
    "cross_entropy": (32768, 65536),
    "cross_entropy, few classes": (2048, 4096),
    "nll_loss": (KEPT, KEPT),
    "batch_norm, eval": (KEPT, 65536),
    "batch_norm, eval, relu": (131072, 8192),
    "gru_cell": (1024, 0),
    "lstm_cell": (1024, 0),
}
