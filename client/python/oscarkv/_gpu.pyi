"""What the extension module for a GPU holds; it is there only where oscarkv was built with CUDA. Misuse raises ValueError.

Device memory and streams are integers: tensor.data_ptr(), stream.cuda_stream."""

import numpy as np
import numpy.typing as npt

from oscarkv._native import CodecSpec, Geometry, TransformSet

def page_table(addresses: npt.ArrayLike, positions: npt.ArrayLike, tokens: npt.ArrayLike,
               packed: npt.ArrayLike) -> npt.NDArray[np.uint8]: ...

class Attention:
    def __init__(self, geometry: Geometry, spec: CodecSpec, transforms: TransformSet, q_heads: int) -> None: ...
    def workspace_bytes(self, requests: int, new_tokens: int = 1) -> int: ...
    def attend(self, *, layer: int, requests: int, new_tokens: int = 1, softmax_scale: float, pages: int,
               first_page: int, lengths: int, queries: int, output: int, workspace: int, workspace_bytes: int,
               stream: int, log_sum_exp: int = 0) -> None: ...
