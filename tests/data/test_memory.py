"""Memory that is used again once nothing lies in it, and arrays that travel together."""

import numpy as np
import pytest
import torch

from kdnb.data.memory import empty, upload

CPU = torch.device("cpu")


def large(rows: int = 3001) -> torch.Tensor:
    return empty((rows, 1009), torch.float32, CPU)


@pytest.mark.parametrize("shape, dtype", [((3, 5), torch.uint8), ((0, 4), torch.float32), ((2003, 1009), torch.float16)])
def test_a_tensor_of_the_asked_kind_at_any_size(shape, dtype):
    tensor = empty(shape, dtype, CPU)
    assert tensor.shape == shape and tensor.dtype == dtype and tensor.is_contiguous()


def test_memory_comes_back_when_the_last_tensor_on_it_is_gone():
    whole = large().fill_(7)
    place, part = whole.data_ptr(), whole[5:6].view(-1)
    del whole
    other = large().fill_(1)
    assert other.data_ptr() != place and part.eq(7).all()
    del part
    assert large().data_ptr() == place


def test_what_autograd_keeps_is_not_overwritten():
    weight = torch.ones(1009, requires_grad=True)
    product = (large().fill_(2) * weight).sum()  # the graph alone holds the large tensor now
    large().fill_(5)
    product.backward()
    assert weight.grad.eq(2 * 3001).all()


def test_a_smaller_tensor_may_lie_in_a_larger_block():
    first = large(rows=3511)
    place = first.data_ptr()
    del first
    assert large(rows=3510).data_ptr() == place


def test_arrays_arrive_as_they_were():
    arrays = [
        np.arange(3),
        np.array([True, False, True]),
        np.zeros((0, 4), np.float32),
        np.ones((5, 2), np.float32).T,
        np.array(2.5),
    ]
    for array, tensor in zip(arrays, upload(CPU, *arrays), strict=True):
        assert tensor.numpy().dtype == array.dtype and np.array_equal(tensor.numpy(), array) and tensor.shape == array.shape
