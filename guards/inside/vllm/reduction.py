"""Where the outputs of tensor-parallel ranks become one: behind the hooks of a row-parallel linear layer."""

from typing import Any

from torch import nn


def reduce_last(module: nn.Module) -> None:
    """Has what was installed on a module's output see this rank's own, and adds to it before ranks are summed.

    vLLM sums inside the layer's forward pass. The same all-reduce then follows the hooks that are there by now. Where
    ranks' outputs are not summed in the layer, or there is one rank, nothing changes.
    """
    layer: Any = module
    if not getattr(layer, "reduce_results", False) or layer.tp_size == 1:
        return
    from vllm.distributed import tensor_model_parallel_all_reduce

    def reduce(_: nn.Module, __: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return tensor_model_parallel_all_reduce(output[0]), *output[1:]
        return tensor_model_parallel_all_reduce(output)

    layer.reduce_results = False
    layer.register_forward_hook(reduce)
