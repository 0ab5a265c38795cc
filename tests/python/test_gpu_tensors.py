"""What oscarkv.gpu takes for a cache: looked at before any GPU is asked."""

import numpy as np
import pytest

pytest.importorskip("oscarkv._gpu", reason="built without CUDA")

import oscarkv.gpu  # noqa: E402  (only where it can be imported)

SHAPE = (3, 64, 2, 128)


class CudaArray:
    """What a library says of memory on a GPU, which nobody reads here."""

    def __init__(self, shape=SHAPE, typestr="<u2", strides=None, read_only=False):
        self.__cuda_array_interface__ = {"shape": shape, "typestr": typestr, "data": (1 << 20, read_only),
                                         "strides": strides, "version": 3}


@pytest.mark.parametrize("array", [
    CudaArray(), CudaArray(typestr="<f2"), CudaArray((3, 4, 16, 2, 128)),
    CudaArray((3, 4, 16, 2, 128), strides=(65536 * 2, 32768, 512, 256, 2)),
    [CudaArray(SHAPE[1:]), CudaArray(SHAPE[1:])],
], ids=["slots", "fp16", "blocks", "strides", "list"])
def test_caches(array):
    oscarkv.gpu.PagedKv(array, array)


@pytest.mark.parametrize("array, message", [
    (np.zeros(SHAPE, np.uint16), r"expected a tensor in GPU memory, found one on DLPack device type 1 \(host memory\)"),
    ("k", "expected DLPack or __cuda_array_interface__, found <class 'str'>"),
    (CudaArray(typestr="<f4"), "expected float16 or uint16 .bf16., found type '<f4'"),
    (CudaArray(read_only=True), "may be written"),
    (CudaArray(strides=(65536, 1024, 512, 4)), "rows that are contiguous, found a stride of 4 bytes"),
    (CudaArray(strides=(65536, -512, 256, 2)), "strides that are not negative"),
    (CudaArray(SHAPE[:3]), "found 2 dimensions"),
    (CudaArray((0, *SHAPE[1:])), "expected layers, found none"),
    ([], "expected layers, found none"),
    ([CudaArray(SHAPE[1:]), CudaArray((65, 2, 128))], "layers of one shape"),
])
def test_what_is_no_cache_is_named(array, message):
    with pytest.raises(ValueError, match=f"^k.*{message}"):
        oscarkv.gpu.PagedKv(array, CudaArray())


def test_k_and_v_must_be_alike():
    with pytest.raises(ValueError, match="same layers and slots"):
        oscarkv.gpu.PagedKv(CudaArray(), CudaArray((4, *SHAPE[1:])))
    with pytest.raises(ValueError, match="same layers and slots"):
        oscarkv.gpu.PagedKv(CudaArray(), CudaArray((3, 4, 16, 2, 128)))
    oscarkv.gpu.PagedKv(CudaArray(), CudaArray((*SHAPE[:3], 64)))  # head dims may differ
