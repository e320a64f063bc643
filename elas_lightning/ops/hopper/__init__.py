"""CUDA kernels of our own for Hopper (compute capability 9.0), where Triton has no word for the instruction.

``wgmma.mma_async.sp``, the sparse product of a warp group, takes its 2:4 operand from registers. The kernels in
``cuda/`` choose two of four where the pre-activations stand and hand them on as they are, so that no pass over memory
is made for the sparsity's sake. They are compiled by NVRTC, which comes with PyTorch, when they are first called.

- ``fragments.py``: the packed form between two of the kernels, and its specification in PyTorch;
- ``compiler.py``: from the sources to a binary; ``driver.py``: from a binary to a launch;
- ``ffn.py``: the kernels as functions of tensors; ``steps.py``: how ``ops/storage.py`` calls them.
"""
